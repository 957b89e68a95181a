//! Which kernels a call launches, how large, and what each is told. Pure: no device is touched, no memory read.

use std::ffi::c_void;
use std::ptr::{null, null_mut};

use thiserror::Error;

use super::params::{Call, MAX_SEQUENCES, Sequence, Tokens};
use crate::call::{AttentionSettings, Geometry, Lengths, PruneSettings, QueryLayout, Rotary, Settings};
use crate::format::Bits;
use crate::method::{MIN_OBSERVED, Recovery};

/// What a plan must know of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Device {
    /// Lanes of a wave: 64 or 32.
    pub wave_size: u32,
    /// Compute units.
    pub compute_units: u32,
    /// Bytes of LDS that a block may use.
    pub shared_bytes: u32,
}

/// T, the element type of query, key, value and output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Scalar {
    F16,
    F32,
    Bf16,
}

impl Scalar {
    /// How names of kernels end.
    pub fn suffix(self) -> &'static str {
        match self {
            Self::F16 => "f16",
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
        }
    }
}

/// Inputs of both operators as device pointers, null where absent or without elements; aligned to 4 bytes.
#[derive(Clone, Copy, Debug)]
pub struct Inputs {
    /// The element type of T.
    pub scalar: Scalar,
    /// Laid out as [`Geometry::layout`] says.
    pub query: *const c_void,
    /// Null when packed.
    pub key: *const c_void,
    /// Null when packed.
    pub value: *const c_void,
    /// Whether key is `[B, Hk, L, D]` and not `[B, L, Hk * D]`.
    pub key_by_heads: bool,
    /// Likewise of value.
    pub value_by_heads: bool,
    /// Rows.
    pub past_key: *const c_void,
    /// Rows.
    pub past_value: *const c_void,
    /// `[positions, D / 2]`
    pub cos_cache: *const c_void,
    /// `[positions, D / 2]`
    pub sin_cache: *const c_void,
    /// Rows of cos_cache, which sin_cache has too.
    pub positions: usize,
    /// `[B, L]`. A position outside the caches reads their nearest row: it is not known on the host.
    pub position_ids: *const i64,
    /// past_key_recent
    pub past_recent: *const c_void,
    /// Keys of a sequence in past_key_recent.
    pub past_recent_rows: usize,
    /// `[Hk, D]`. What is not positive and finite reads as 1: it is not known on the host.
    pub query_saliency: *const f32,
}

impl Inputs {
    /// None of the inputs, of element type `scalar`.
    pub fn none(scalar: Scalar) -> Self {
        Self {
            scalar,
            query: null(),
            key: null(),
            value: null(),
            key_by_heads: false,
            value_by_heads: false,
            past_key: null(),
            past_value: null(),
            cos_cache: null(),
            sin_cache: null(),
            positions: 0,
            position_ids: null(),
            past_recent: null(),
            past_recent_rows: 0,
            query_saliency: null(),
        }
    }
}

/// Outputs of `SparkPrune` as device pointers.
#[derive(Clone, Copy, Debug)]
pub struct PruneOutputs {
    /// The same as past_key in a shared buffer.
    pub present_key: *mut c_void,
    /// The same as past_value in a shared buffer.
    pub present_value: *mut c_void,
    /// present_key_recent, `[B, Hk, min(total, recent_window), D]`; null if not wanted.
    pub present_recent: *mut c_void,
    /// observed_saliency, `[B, Hk, D]`; null if not wanted.
    pub observed_saliency: *mut f32,
}

/// attention_bias and the output of `SparkAttention` as device pointers.
#[derive(Clone, Copy, Debug)]
pub struct AttentionTensors {
    /// Null if absent.
    pub bias: *const c_void,
    /// Dimensions of attention_bias.
    pub bias_shape: [usize; 4],
    /// Laid out as query, without key and value when packed.
    pub output: *mut c_void,
}

/// One launch of a kernel.
#[derive(Clone, Debug)]
pub struct Launch {
    /// Name in the code object.
    pub kernel: String,
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub block: [u32; 3],
    /// Bytes of LDS, requested at launch.
    pub shared_bytes: u32,
    /// The kernel's argument; its workspace is null until [`Plan::set_workspace`].
    pub call: Call,
}

/// The launches of a call, in order, on one stream. A call without tokens may have none.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// Bytes of device memory to give to [`Plan::set_workspace`], aligned to 16; 0: none is needed.
    pub workspace_bytes: usize,
    /// In order.
    pub launches: Vec<Launch>,
}

impl Plan {
    /// Tells all launches where their workspace lies.
    pub fn set_workspace(&mut self, workspace: *mut c_void) {
        self.launches.iter_mut().for_each(|l| l.call.workspace = workspace);
    }
}

/// Why a call cannot be planned.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum PlanError {
    /// Waves of this size are not supported.
    #[error("the device has waves of {0} lanes; the kernels are for 64 and 32")]
    WaveSize(u32),
    /// The call does not fit 32-bit sizes or a launch.
    #[error("{what} of {size} is more than a kernel can take; make the batch or the prompt smaller")]
    TooLarge {
        /// what is too large
        what: &'static str,
        /// how large it is
        size: usize,
    },
    /// A row does not fit the LDS of the device.
    #[error("{kernel} needs {needed} bytes of LDS, the device has {given}")]
    Shared {
        /// the kernel
        kernel: String,
        /// bytes needed
        needed: u32,
        /// bytes that a block may use
        given: u32,
    },
}

/// The write path of one call.
///
/// # Errors
/// If the call is too large for the device.
pub fn prune(
    device: &Device,
    geometry: &Geometry,
    lengths: &Lengths,
    settings: &PruneSettings,
    inputs: &Inputs,
    outputs: &PruneOutputs,
) -> Result<Plan, PlanError> {
    let _ = (device, geometry, lengths, settings, inputs, outputs);
    todo!()
}

/// The read path of one call.
///
/// # Errors
/// If the call is too large for the device.
pub fn attention(
    device: &Device,
    geometry: &Geometry,
    lengths: &Lengths,
    settings: &AttentionSettings,
    inputs: &Inputs,
    tensors: &AttentionTensors,
) -> Result<Plan, PlanError> {
    let _ = (device, geometry, lengths, settings, inputs, tensors);
    todo!()
}
