//! Which kernels a call launches, how large, and what each is told. Pure: no device is touched, no memory read.
//!
//! # Cost model
//! Decoding reads every cached row once. What bounds it is the memory's bandwidth or the instructions that decode rows,
//! whichever is slower (`docs/performance.md` counts both); either way every compute unit must be busy to the end.
//! - *Bytes in flight.* A memory of bandwidth W and latency t needs W * t bytes under way: 5.3 TB/s and 0.8 us are 4.2 MB, 14
//!   KB for each of the 304 compute units of an MI300X (1.6 TB/s: 13 KB for each of the 104 of one die of an MI250). A wave
//!   asks for a tile of rows at once and waits once for it; with D = 128, 8 bits and four queries that is 16 rows or 3.8 KB,
//!   and 8 waves, 2 blocks, have 30 KB under way.
//! - *Waves a compute unit.* Registers allow 12 waves with up to four queries a block and 8 with eight, or where quantised
//!   rows of more than 64 channels go through products of matrices, which [`decode_blocks`] says and `tests/device_code`
//!   checks in the code objects; LDS allows more.
//! - *Splitting.* Blocks are (queries of a KV head) x (sequences). Where that is less than the device takes at once, the keys
//!   of a sequence are cut into pieces, as many as still fit in one round: a second, partly filled round would cost more
//!   than longer pieces. A piece costs a state of D + 2 floats a query, written and read once; [`MIN_DECODE_KEYS`] keys keep
//!   that below a tenth of the rows' bytes.
//! - *Prefill* is bound by multiply-adds. It is cut only where there are few blocks, that is for chunks of few tokens
//!   after a long cache.

use std::ffi::c_void;
use std::ptr::null;

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
    /// As `ops/call.h` numbers them.
    fn code(self) -> u32 {
        match self {
            Self::F16 => 0,
            Self::F32 => 1,
            Self::Bf16 => 2,
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

/// Threads of a block: waves of either size.
const WAVES: u32 = 4;
/// Blocks of a decoding kernel that a compute unit holds at once: as many as waves that a SIMD has registers for, one of
/// each block.
fn decode_blocks(octets: u32, columns: u32, matrix: bool) -> u32 {
    if columns > 4 || matrix && octets > 8 { 2 } else { 3 }
}
/// Bytes of LDS of a compute unit.
const COMPUTE_UNIT_LDS: u32 = 65536;
/// Blocks of a prefill kernel likewise: LDS holds one.
const PREFILL_BLOCKS: u32 = 1;
/// Fewest keys of a piece.
const MIN_DECODE_KEYS: u32 = 256;
const MIN_PREFILL_KEYS: u32 = 512;
/// Keys of a piece are a multiple, so that tiles are whole.
const PIECE: u32 = 64;
/// Most (token, head) pairs of a KV head that the decoding kernels take; they decode rows anew for every eight.
const MOST_DECODE_COLUMNS: u32 = 16;
/// `KEY_SLACK_WORDS` of `ops/row.h`.
const KEY_SLACK_WORDS: u32 = 5;
/// `MATRIX_TABLE_WORDS` of `ops/decode_matrix.h`.
const MATRIX_TABLE_WORDS: u32 = 1536;

/// `size` in 32 bits.
fn narrow(what: &'static str, size: usize) -> Result<u32, PlanError> {
    u32::try_from(size).ok().filter(|&n| n <= i32::MAX as u32).ok_or(PlanError::TooLarge { what, size })
}

/// What all launches of a call are told alike.
fn base(geometry: &Geometry, lengths: &Lengths, settings: &Settings, inputs: &Inputs) -> Result<Call, PlanError> {
    let &Geometry { batch, new, past, query_heads, kv_heads, layout, key, value } = geometry;
    let d = geometry.head_dim();
    let size = match inputs.scalar {
        Scalar::F32 => 4,
        Scalar::F16 | Scalar::Bf16 => 2,
    };
    narrow("a batch", batch)?;
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
    let (query, key_tokens, value_tokens) = match layout {
        QueryLayout::Packed => (
            by_tokens(inputs.query, 0, width),
            by_tokens(inputs.query, query_heads, width),
            by_tokens(inputs.query, query_heads + kv_heads, width),
        ),
        QueryLayout::Heads => (
            by_heads(inputs.query, query_heads),
            kv(inputs.key, inputs.key_by_heads),
            kv(inputs.value, inputs.value_by_heads),
        ),
        QueryLayout::Tokens => (
            by_tokens(inputs.query, 0, query_heads),
            kv(inputs.key, inputs.key_by_heads),
            kv(inputs.value, inputs.value_by_heads),
        ),
    };
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
        scalar: inputs.scalar.code(),
        new_tokens: narrow("new tokens", new)?,
        past_rows: narrow("past rows", past)?,
        present_rows: narrow("present rows", lengths.present(geometry))?,
        query_heads: narrow("query heads", query_heads)?,
        kv_heads: narrow("KV heads", kv_heads)?,
        group: (query_heads / kv_heads) as u32,
        head_dim: d as u32,
        kept: key.kept() as u32,
        key_bits: bits(key.bits()),
        value_bits: bits(value.bits()),
        key_row_bytes: narrow("key row bytes", key.row_bytes())?,
        value_row_bytes: narrow("value row bytes", value.row_bytes())?,
        recover: (settings.recovery == Recovery::Mean).into(),
        recent_window: narrow("recent_window", settings.recent_window)?,
        past_recent_rows: narrow("past_key_recent rows", inputs.past_recent_rows)?,
        rotary: match settings.rotary {
            None => 0,
            Some(Rotary::Halves) => 1,
            Some(Rotary::Interleaved) => 2,
        },
        positions: narrow("positions", inputs.positions)?,
        ..Call::default()
    })
}

fn bits(bits: Bits) -> u32 {
    match bits {
        Bits::B16 => 16,
        Bits::B8 => 8,
        Bits::B4 => 4,
    }
}

/// Words that the fields of a key row and of a value row take, as `KeyLayout` and `ValueLayout` of `ops/row.h` count.
fn row_words(geometry: &Geometry) -> (u32, u32) {
    let Geometry { key, value, .. } = geometry;
    let key = key.codes_at() + key.bits().bytes(key.kept());
    let value = value.codes_at() + value.bits().bytes(value.head_dim());
    (key.div_ceil(4) as u32, value.div_ceil(4) as u32)
}

/// `call` for the sequences from `first` on, as many as fit.
fn sequences(call: &Call, lengths: &Lengths, first: usize) -> Call {
    let mut call = *call;
    let last = lengths.past.len().min(first + MAX_SEQUENCES);
    call.first_sequence = first as u32;
    call.sequences = (last - first) as u32;
    let pairs = lengths.past[first..last].iter().zip(&lengths.new[first..last]);
    for (sequence, (&past, &valid)) in call.sequence.iter_mut().zip(pairs) {
        *sequence = Sequence { past: past as u32, valid: valid as u32 };
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
            Ok(Launch { kernel, grid: [x, 1, call.sequences], block: [threads, 1, 1], shared_bytes, call })
        }
        _ => Err(PlanError::TooLarge { what: "a launch", size: usize::try_from(blocks).unwrap_or(usize::MAX) }),
    }
}

fn check_wave(device: &Device) -> Result<u32, PlanError> {
    match device.wave_size {
        wave @ (32 | 64) => Ok(wave),
        other => Err(PlanError::WaveSize(other)),
    }
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
    let wave = check_wave(device)?;
    let &Geometry { batch, new, kv_heads, key, value, .. } = geometry;
    let d = geometry.head_dim();
    let mut call = base(geometry, lengths, &settings.common, inputs)?;
    call.present_key = outputs.present_key;
    call.present_value = outputs.present_value;
    call.present_recent = outputs.present_recent;
    call.present_recent_rows = narrow("recent keys", lengths.total.min(settings.common.recent_window))?;
    call.observed_saliency = outputs.observed_saliency;
    call.observation_window = narrow("observation_window", settings.observation_window)?;
    call.grow = u32::from(!std::ptr::eq(inputs.past_key, outputs.present_key))
        | u32::from(!std::ptr::eq(inputs.past_value, outputs.present_value)) << 1;
    let heads = kv_heads as u64;
    let mut plan = Plan::default();
    for first in (0..batch).step_by(MAX_SEQUENCES) {
        let call = sequences(&call, lengths, first);
        if !call.present_recent.is_null() && call.present_recent_rows > 0 {
            let blocks = u64::from(call.present_recent_rows) * heads;
            plan.launches.push(launch(device, "spark_recent".into(), blocks, 256, 0, call)?);
        }
        if call.grow != 0 && call.present_rows > 0 {
            // `GROW_THREADS` * `GROW_WORDS` words a block.
            let words = u64::from(call.present_rows) * (key.row_bytes().max(value.row_bytes()) / 4) as u64;
            let blocks = words.div_ceil(1024) * heads * 2;
            plan.launches.push(launch(device, "spark_grow".into(), blocks, 256, 0, call)?);
        }
        let own = &call.sequence[..call.sequences as usize];
        if !call.observed_saliency.is_null() || own.iter().any(|s| s.valid as usize >= MIN_OBSERVED) {
            plan.workspace_bytes = plan.workspace_bytes.max(own.len() * kv_heads * d * 4);
            plan.launches.push(launch(device, "spark_saliency".into(), heads, 512, 512 * 4, call)?);
        }
        if own.iter().any(|s| s.valid > 0) {
            let (key_words, value_words) = row_words(geometry);
            let shared = WAVES * (4 * key_words.max(value_words) + 256);
            let blocks = new.div_ceil(WAVES as usize) as u64 * heads;
            plan.launches.push(launch(device, "spark_prune".into(), blocks, WAVES * wave, shared, call)?);
        }
    }
    Ok(plan)
}

/// A kernel that attends, and what it takes at once.
struct Attend {
    kernel: String,
    /// (token, head) pairs of a block.
    columns: u32,
    threads: u32,
    shared_bytes: u32,
    /// Blocks of a compute unit.
    resident: u32,
    min_keys: u32,
}

impl Attend {
    fn new(wave: u32, call: &Call, key_words: u32) -> Self {
        let d = call.head_dim;
        let pairs = u64::from(call.group) * u64::from(call.new_tokens);
        if pairs > MOST_DECODE_COLUMNS.into() {
            // `Prefill` of ops/prefill.h.
            let (channels, columns) = if d > 128 { (256, 16) } else { (128, 32) };
            let words = 2 * columns * (d + 1) + columns * (columns + 1) + d + columns * key_words + KEY_SLACK_WORDS;
            return Self {
                kernel: format!("spark_prefill_{channels}"),
                columns,
                threads: 256,
                shared_bytes: 4 * words,
                resident: PREFILL_BLOCKS,
                min_keys: MIN_PREFILL_KEYS,
            };
        }
        // `decode` of ops/decode.h.
        let octets = (d / 8).next_power_of_two().max(8);
        // `DecodeMatrix` of ops/decode_matrix.h, where the device has such products.
        let quantised = call.key_bits < 16 && call.value_bits < 16 && octets <= 16;
        let columns = match pairs {
            0..=1 => 1,
            // Registers have no room for the sums of more.
            _ if quantised && octets == 16 && call.value_bits == 4 => 4,
            2..=4 => 4,
            _ => 8,
        };
        let tile = wave / octets * if columns > 1 { 2 } else { 4 };
        let setup = (columns + 1) * d;
        let staged = WAVES * (tile * key_words + KEY_SLACK_WORDS);
        let states = WAVES / 2 * columns * (d + 2);
        let mut words = setup.max(staged).max(states);
        let matrix = quantised && wave == 64;
        if matrix {
            let fields = (16 * key_words + KEY_SLACK_WORDS).next_multiple_of(4);
            let tiles = MATRIX_TABLE_WORDS + WAVES * (fields + 4 * 16);
            words = words.max(columns * d + tiles.max(WAVES * columns * (d + 2)));
        }
        let shared_bytes = 4 * (d + words);
        Self {
            kernel: format!("spark_decode_{}{octets}x{columns}", if quantised { "quantised_" } else { "" }),
            columns,
            threads: WAVES * wave,
            shared_bytes,
            resident: decode_blocks(octets, columns, matrix).min(COMPUTE_UNIT_LDS / shared_bytes).max(1),
            min_keys: MIN_DECODE_KEYS,
        }
    }
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
    let wave = check_wave(device)?;
    let &Geometry { batch, new, query_heads, kv_heads, layout, .. } = geometry;
    let d = geometry.head_dim();
    let mut call = base(geometry, lengths, &settings.common, inputs)?;
    let (head, token) = match layout {
        QueryLayout::Heads => (new * d, d),
        _ => (d, query_heads * d),
    };
    let batch_stride = (query_heads * new * d) as i64;
    call.output = Tokens { data: tensors.output, batch: batch_stride, head: head as i64, token: token as i64 };
    call.scale = settings.scale.unwrap_or_else(|| 1.0 / (d as f32).sqrt());
    call.softcap = settings.softcap.unwrap_or(0.0);
    call.causal = settings.causal.into();
    // A window beyond all keys is none.
    call.window = settings.window.map_or(0, |w| u32::try_from(w).unwrap_or(0));
    if !tensors.bias.is_null() {
        let [batches, heads, rows, columns] = tensors.bias_shape.map(|n| n as i64);
        call.bias = tensors.bias;
        call.bias_batch = if batches == 1 { 0 } else { heads * rows * columns };
        call.bias_head = if heads == 1 { 0 } else { rows * columns };
        call.bias_token = columns;
    }
    let mut plan = Plan::default();
    if new == 0 {
        return Ok(plan);
    }
    let attend = Attend::new(wave, &call, row_words(geometry).0);
    let pairs = u64::from(call.group) * new as u64;
    for first in (0..batch).step_by(MAX_SEQUENCES) {
        let mut call = sequences(&call, lengths, first);
        let blocks = pairs.div_ceil(attend.columns.into()) * kv_heads as u64;
        (call.splits, call.split_keys) = pieces(device, &attend, &call, blocks);
        let states = call.sequences as usize * query_heads * new * call.splits as usize;
        let splits = u64::from(call.splits);
        let Attend { kernel, threads, shared_bytes, .. } = &attend;
        plan.launches.push(launch(device, kernel.clone(), blocks * splits, *threads, *shared_bytes, call)?);
        if call.splits > 1 {
            plan.workspace_bytes = plan.workspace_bytes.max(states * (d + 2) * 4);
            let queries = (query_heads * new) as u64;
            let blocks = queries.div_ceil(WAVES.into());
            plan.launches.push(launch(device, "spark_merge".into(), blocks, WAVES * wave, 0, call)?);
        }
    }
    Ok(plan)
}

/// Pieces that the keys of a sequence are cut into, and keys of a piece, for a launch of `blocks` blocks a sequence.
fn pieces(device: &Device, attend: &Attend, call: &Call, blocks: u64) -> (u32, u32) {
    let keys = call.sequence[..call.sequences as usize].iter().filter(|s| s.valid > 0).map(|s| {
        let first = if call.window > 0 { (s.past + 1).saturating_sub(call.window) } else { 0 };
        s.past + s.valid - first
    });
    let keys = keys.max().unwrap_or(0).max(1);
    let at_once = u64::from(device.compute_units.max(1)) * u64::from(attend.resident);
    let wanted = at_once / (blocks * u64::from(call.sequences)).max(1);
    let wanted = wanted.clamp(1, u64::from(keys.div_ceil(attend.min_keys))) as u32;
    let split_keys = keys.div_ceil(wanted).next_multiple_of(PIECE);
    (keys.div_ceil(split_keys), split_keys)
}
