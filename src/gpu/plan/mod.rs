//! Which kernels a call launches, with which sizes and arguments. Pure: touches no device and reads no memory.

mod attention;
mod basis;
mod prune;
mod rounded;
mod tail;
mod tensors;

use std::ffi::c_void;

use thiserror::Error;

use super::params::{Call, Sequence, Tokens};
use crate::call::{Geometry, Lengths};

pub use attention::attention;
pub use prune::prune;
pub use tensors::{AttentionTensors, Inputs, PruneOutputs, Scalar};

/// The properties of a device that a plan needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Device {
    /// Lanes of a wave: 64 or 32.
    pub wave_size: u32,
    /// Compute units.
    pub compute_units: u32,
    /// Bytes of LDS that a block may use.
    pub shared_bytes: u32,
    /// Those that its code has kernels for.
    pub matrix: MatrixCores,
    /// Most bytes of a workspace for cached rows that prompts on matrix cores read as float16: [`UNPACKED_BYTES`], or 0
    /// where memory is short; each block of queries then decodes rows itself.
    pub unpacked_bytes: usize,
}

/// Of 131,072 tokens of eight KV heads of 128 channels.
pub const UNPACKED_BYTES: usize = 512 << 20;

/// What multiplies matrices, and what it is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MatrixCores {
    /// Nothing does.
    None,
    /// AMD's: quantised rows in decoding, and prompts.
    Mfma,
    /// NVIDIA's tensor cores: quantised rows in decoding, and prompts of float16 and bfloat16 with heads of up to 128
    /// channels.
    Mma,
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
    /// The kernel's argument; its workspace, and tokens there, are null until [`Plan::set_workspace`].
    pub call: Call,
    /// What it does with queries and keys in a basis.
    pub in_basis: Option<InBasis>,
}

/// What a launch does with queries and keys in a basis, which lie in the workspace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum InBasis {
    Writes(TokensAt),
    Reads(TokensAt),
}

/// Bytes of the workspace where tokens begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct TokensAt {
    pub queries: usize,
    pub keys: usize,
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
    /// Bytes of the workspace that unpacked rows take, for which [`Device::unpacked_bytes`] gave room.
    pub fn unpacked_bytes(&self) -> usize {
        self.launches.iter().map(|launch| rounded::unpacked_bytes(&launch.call)).max().unwrap_or(0)
    }

    /// Sets the workspace of all launches.
    pub fn set_workspace(&mut self, workspace: *mut c_void) {
        let at = |byte: usize| workspace.cast::<u8>().wrapping_add(byte).cast::<c_void>();
        for Launch { call, in_basis, .. } in &mut self.launches {
            call.workspace = workspace;
            match *in_basis {
                None => (),
                Some(InBasis::Writes(TokensAt { queries, keys })) => {
                    (call.basis_queries, call.basis_keys) = (at(queries).cast(), at(keys).cast());
                }
                Some(InBasis::Reads(TokensAt { queries, keys })) => {
                    // Sequences are numbered in the batch, and those of the launch alone are there.
                    let before = |tokens: &Tokens| 4 * call.first_sequence as usize * tokens.batch as usize;
                    call.query.data = at(queries.wrapping_sub(before(&call.query)));
                    call.key.data = at(keys.wrapping_sub(before(&call.key)));
                }
            }
        }
    }
}

/// Why a call cannot be planned.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
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

/// `size` in 32 bits.
fn narrow(what: &'static str, size: usize) -> Result<u32, PlanError> {
    u32::try_from(size).ok().filter(|&n| n <= i32::MAX as u32).ok_or(PlanError::TooLarge { what, size })
}

/// Words of the fields of a key row and of a value row, as `KeyLayout` and `ValueLayout` of `ops/format/v1.h` count
/// them.
fn row_words(geometry: &Geometry) -> (u32, u32) {
    let Geometry { key, value, .. } = geometry;
    let key = key.planes().map_or_else(|| key.codes_at() + key.bits().bytes(key.kept()), |planes| planes.bytes());
    let value = value.codes_at() + value.bits().bytes(value.head_dim());
    (key.div_ceil(4) as u32, value.div_ceil(4) as u32)
}

/// The position from which on the token after `past` others sees keys.
fn first_seen(call: &Call, past: usize) -> usize {
    if call.window > 0 { (past + 1).saturating_sub(call.window as usize) } else { 0 }
}

/// `call` for the sequences from `first` on, `most` at most. `tails` are the keys that the tail of each
/// sequence keeps.
fn sequences(call: &Call, lengths: &Lengths, tails: &[u32], first: usize, most: usize) -> Call {
    let mut call = *call;
    let last = lengths.past.len().min(first + most);
    call.first_sequence = first as u32;
    call.sequences = (last - first) as u32;
    for (sequence, b) in call.sequence.iter_mut().zip(first..last) {
        *sequence = Sequence { past: lengths.past[b] as u32, valid: lengths.new[b] as u32, tail: tails[b] };
    }
    call
}

/// A launch of `blocks` blocks for each sequence of `call`.
fn launch(
    device: &Device,
    kernel: String,
    blocks: u64,
    threads: u32,
    shared_bytes: u32,
    call: Call,
) -> Result<Launch, PlanError> {
    if shared_bytes > device.shared_bytes {
        return Err(PlanError::Shared { kernel, needed: shared_bytes, given: device.shared_bytes });
    }
    // HIP counts threads in 32 bits.
    match u32::try_from(blocks) {
        Ok(x) if u64::from(x) * u64::from(threads) <= u64::from(i32::MAX as u32) => {
            let (grid, block) = ([x, 1, call.sequences], [threads, 1, 1]);
            Ok(Launch { kernel, grid, block, shared_bytes, call, in_basis: None })
        }
        _ => Err(PlanError::TooLarge { what: "a launch", size: usize::try_from(blocks).unwrap_or(usize::MAX) }),
    }
}

/// Lanes of a wave of `device`, if kernels are for them.
fn check(device: &Device) -> Result<u32, PlanError> {
    match device.wave_size {
        wave @ (32 | 64) => Ok(wave),
        other => Err(PlanError::WaveSize(other)),
    }
}
