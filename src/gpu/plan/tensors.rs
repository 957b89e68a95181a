//! The tensors of a call, and the arguments common to all its kernels.

use std::ffi::c_void;
use std::ptr::null;

use super::{PlanError, narrow};
use crate::call::{Geometry, Lengths, QueryLayout, Rotary, Settings};
use crate::gpu::limits::{BFLOAT16, FLOAT16, FLOAT32, RECOVER_EXPONENTIAL, RECOVER_MEAN, RECOVER_NONE, RECOVER_NORMAL};
use crate::gpu::params::{Call, Tokens};
use crate::method::Recovery;

/// T, the element type of query, key, value and output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Scalar {
    F16,
    F32,
    Bf16,
}

impl Scalar {
    /// As `ops/limits.h` numbers them.
    pub(super) fn code(self) -> u32 {
        match self {
            Self::F16 => FLOAT16,
            Self::F32 => FLOAT32,
            Self::Bf16 => BFLOAT16,
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
    /// `[B, L]`. A position outside the caches reads the nearest row: the host cannot check it.
    pub position_ids: *const i64,
    /// past_key_recent
    pub past_recent: *const c_void,
    /// Keys of a sequence in past_key_recent.
    pub past_recent_rows: usize,
    /// `[Hk, D]`. Values that are not positive and finite read as 1: the host cannot check them.
    pub query_saliency: *const f32,
    /// `[Hk, D, D]`; with rows in planes only, where it is required.
    pub key_basis: *const f32,
    /// The same; required by `SparkAttention`, and `SparkPrune` has none.
    pub query_basis: *const f32,
}

impl Inputs {
    /// No inputs, of element type `scalar`.
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
            key_basis: null(),
            query_basis: null(),
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
    /// Laid out like query, without key and value when packed.
    pub output: *mut c_void,
}

/// As `ops/limits.h` numbers them.
fn recover(recovery: Recovery) -> u32 {
    match recovery {
        Recovery::None => RECOVER_NONE,
        Recovery::Mean => RECOVER_MEAN,
        Recovery::Exponential => RECOVER_EXPONENTIAL,
        Recovery::Normal => RECOVER_NORMAL,
    }
}

/// As `ops/call.h` numbers them.
fn rotary(rotary: Option<Rotary>) -> u32 {
    match rotary {
        None => 0,
        Some(Rotary::Halves) => 1,
        Some(Rotary::Interleaved) => 2,
    }
}

/// Queries, keys and values.
fn tokens(geometry: &Geometry, inputs: &Inputs) -> [Tokens; 3] {
    let &Geometry { new, query_heads, kv_heads, layout, .. } = geometry;
    let d = geometry.head_dim();
    let size = match inputs.scalar {
        Scalar::F32 => 4,
        Scalar::F16 | Scalar::Bf16 => 2,
    };
    let by_heads =
        |data, heads: usize| Tokens { data, batch: (heads * new * d) as i64, head: (new * d) as i64, token: d as i64 };
    let by_tokens = |data: *const c_void, first: usize, width: usize| Tokens {
        data: data.cast::<u8>().wrapping_add(first * d * size).cast(),
        batch: (new * width * d) as i64,
        head: d as i64,
        token: (width * d) as i64,
    };
    let kv = |data, heads_first| match heads_first {
        true => by_heads(data, kv_heads),
        false => by_tokens(data, 0, kv_heads),
    };
    let width = query_heads + 2 * kv_heads;
    match layout {
        QueryLayout::Packed => [
            by_tokens(inputs.query, 0, width),
            by_tokens(inputs.query, query_heads, width),
            by_tokens(inputs.query, query_heads + kv_heads, width),
        ],
        QueryLayout::Heads => [
            by_heads(inputs.query, query_heads),
            kv(inputs.key, inputs.key_by_heads),
            kv(inputs.value, inputs.value_by_heads),
        ],
        QueryLayout::Tokens => [
            by_tokens(inputs.query, 0, query_heads),
            kv(inputs.key, inputs.key_by_heads),
            kv(inputs.value, inputs.value_by_heads),
        ],
    }
}

/// The arguments common to all launches of a call.
pub(super) fn base(
    geometry: &Geometry,
    lengths: &Lengths,
    settings: &Settings,
    inputs: &Inputs,
) -> Result<Call, PlanError> {
    let &Geometry { batch, new, past, query_heads, kv_heads, key, value, .. } = geometry;
    let d = geometry.head_dim();
    narrow("a batch", batch)?;
    let [query, key_tokens, value_tokens] = tokens(geometry, inputs);
    Ok(Call {
        query,
        key: key_tokens,
        value: value_tokens,
        past_key: inputs.past_key,
        past_value: inputs.past_value,
        past_recent: inputs.past_recent,
        cos_cache: inputs.cos_cache,
        sin_cache: inputs.sin_cache,
        position_ids: inputs.position_ids,
        query_saliency: inputs.query_saliency,
        key_basis: inputs.key_basis,
        query_basis: inputs.query_basis,
        scalar: inputs.scalar.code(),
        new_tokens: narrow("new tokens", new)?,
        past_rows: narrow("past rows", past)?,
        present_rows: narrow("present rows", lengths.present(geometry))?,
        query_heads: narrow("query heads", query_heads)?,
        kv_heads: narrow("KV heads", kv_heads)?,
        group: (query_heads / kv_heads) as u32,
        head_dim: d as u32,
        kept: key.kept() as u32,
        key_bits: if key.planes().is_some() { 16 } else { key.bits().width() },
        value_bits: value.bits().width(),
        key_row_bytes: narrow("key row bytes", key.row_bytes())?,
        value_row_bytes: narrow("value row bytes", value.row_bytes())?,
        recover: recover(settings.recovery),
        recent_window: narrow("recent_window", settings.recent_window)?,
        past_recent_rows: narrow("past_key_recent rows", inputs.past_recent_rows)?,
        rotary: rotary(settings.rotary),
        positions: narrow("positions", inputs.positions)?,
        key_planes: key.planes().is_some().into(),
        key_directions_8: key.planes().map_or(0, |planes| planes.eight as u32),
        key_directions_4: key.planes().map_or(0, |planes| planes.four as u32),
        key_companded: key.codebook().is_some().into(),
        value_groups: value.groups() as u32,
        value_rotated: value.is_rotated().into(),
        ..Call::default()
    })
}
