//! The read path.
//!
//! # Cost model
//! Decoding reads every cached row once. Its limit is the memory bandwidth or the instructions that decode rows,
//! whichever is slower (`docs/performance.md` counts both); either way every compute unit must be busy to the end.
//! - *Bytes in flight.* A memory of bandwidth W and latency t needs W * t bytes in flight: 5.3 TB/s and 0.8 us are 4.2
//!   MB, 14 KB for each of the 304 compute units of an MI300X (1.6 TB/s: 13 KB for each of the 104 of one die of an
//!   MI250). A wave requests a whole tile of rows and waits for it once; with D = 128, 8 bits and four queries on
//!   matrix cores that is 16 rows or 3.8 KB, and 8 waves, 2 blocks, have 30 KB in flight.
//! - *Waves per compute unit.* Registers allow 12 waves with up to four queries per block, and 8 with eight queries or
//!   with quantised rows of more than 64 channels on matrix cores, unless keys are in planes. [`decode_blocks`] has
//!   these numbers, and `tests/gpu/device_code` checks them in the code objects; LDS allows more.
//! - *Splitting.* Blocks are (queries of a KV head) x (sequences). If that does not fill the device, the keys of a
//!   sequence are cut into as many pieces as still fit in one round: a second, partly filled round would
//!   cost more than longer pieces. A piece costs a state of D + 2 floats per query, written and read once;
//!   [`MIN_DECODE_KEYS`] keys keep that below a tenth of the rows' bytes. Keys in the tail of a buffer are not taken by
//!   matrix cores, so the last piece, which has them, is to be shorter.
//! - *NVIDIA GPUs.* A multiprocessor is a compute unit with four SIMDs of 512 registers per lane. Four blocks fit
//!   where registers are limited to 128; each wave has two tiles of 16 rows in LDS, one of which is on its way: 16
//!   waves have 60 KB in flight, twice what 4.8 TB/s and 0.8 us ask for. So instructions are the limit.
//! - *Rotated values.* Sums of stored values are rotated back once for each query, when pieces are merged. So the new
//!   keys, whose values are dense, are a piece of their own, and there is always a merge: a launch and a state more
//!   than a short cache would need, and nothing for each row.
//! - *Prefill* is bound by multiply-adds, on matrix cores if the device has them (`ops/prefill_matrix.h` has their cost
//!   model). Where LDS has room, two blocks share a compute unit, so that one's matrix instructions hide the decoding
//!   of the other. Keys are cut only if there are few blocks, that is for chunks of few tokens after a long cache.

use super::tail::tails;
use super::tensors::base;
use super::{
    AttentionTensors, Device, Inputs, MatrixCores, Plan, PlanError, basis, check, first_seen, launch, narrow, rounded,
    row_words, sequences,
};
use crate::call::{AttentionSettings, Geometry, Lengths, QueryLayout};
use crate::gpu::limits::{
    BLOCK_WAVES, FLOAT32, KEY_SLACK_WORDS, MATRIX_KEYS, MATRIX_TABLE_WORDS, MAX_SEQUENCES, MMA_KEY_SLACK_BYTES,
    MMA_VALUE_SLACK_BYTES, PLANE_SLACK_WORDS, PREFILL_THREADS, RECOVER_MEAN, UNPACK_KEYS,
};
use crate::gpu::params::{Call, Tokens};

/// Lanes that share a row in decoding kernels for heads of `head_dim` channels, eight channels each.
fn octets_of(head_dim: u32) -> u32 {
    (head_dim / 8).next_power_of_two().max(8)
}

/// Blocks of a decoding kernel that a compute unit holds at once: the number of waves that a SIMD has registers for,
/// since each block has one wave on every SIMD.
fn decode_blocks(octets: u32, columns: u32, matrix: MatrixCores, planes: bool) -> u32 {
    match matrix {
        MatrixCores::Mma => {
            if columns > 4 {
                2
            } else {
                4
            }
        }
        MatrixCores::Mfma if octets > 8 && !planes => 2,
        _ => {
            if columns > 4 {
                2
            } else {
                3
            }
        }
    }
}
/// The same for prefill kernels: without AMD's matrix cores LDS or registers hold one block, with them two.
const PREFILL_BLOCKS: u32 = 1;
const MATRIX_BLOCKS: u32 = 2;
/// Fewest keys of a piece.
const MIN_DECODE_KEYS: u32 = 256;
const MIN_PREFILL_KEYS: u32 = 512;
/// The keys of a piece are a multiple of this, so that tiles are whole.
const PIECE: u32 = 64;
/// Instructions of a key that is not taken by matrix cores, in those of one that is.
const MATRIX_TAIL_COST: u32 = 4;
/// Most (token, head) pairs of a KV head for the decoding kernels, which decode rows again for every eight, and in
/// planes without matrix cores for every four.
const MOST_DECODE_COLUMNS: u32 = 16;

/// An attention kernel, and the work of one of its blocks.
struct Attend {
    kernel: String,
    /// (token, head) pairs of a block.
    columns: u32,
    threads: u32,
    shared_bytes: u32,
    /// Blocks that a compute unit holds at once.
    resident: u32,
    min_keys: u32,
    /// Stored keys that take as long as one in the tail.
    tail_cost: u32,
    /// Whether it reads what `ops/rounded.h` writes.
    rounds_keys: bool,
}

impl Attend {
    fn new(device: &Device, call: &Call, key_words: u32) -> Self {
        let pairs = u64::from(call.group) * u64::from(call.new_tokens);
        match device.matrix {
            _ if pairs <= MOST_DECODE_COLUMNS.into() => Self::decode(device, call, key_words, pairs),
            MatrixCores::Mfma => Self::matrix_prefill(device, call, key_words, pairs),
            MatrixCores::Mma if call.scalar != FLOAT32 && call.head_dim <= 128 => Self::mma_prefill(call, key_words),
            MatrixCores::None | MatrixCores::Mma => Self::prefill(call, key_words),
        }
    }

    /// `Prefill` of `ops/prefill.h`.
    fn prefill(call: &Call, key_words: u32) -> Self {
        let d = call.head_dim;
        let (channels, columns) = if d > 128 { (256, 16) } else { (128, 32) };
        let words = 2 * columns * (d + 1) + columns * (columns + 1) + source_words(call, columns, key_words);
        Self {
            kernel: format!("spark_prefill_{channels}"),
            columns,
            threads: PREFILL_THREADS,
            shared_bytes: 4 * words,
            resident: PREFILL_BLOCKS,
            min_keys: MIN_PREFILL_KEYS,
            tail_cost: 1,
            rounds_keys: false,
        }
    }

    /// `MatrixPrefill` of `ops/prefill_matrix.h`.
    fn matrix_prefill(device: &Device, call: &Call, key_words: u32, pairs: u64) -> Self {
        let d = call.head_dim;
        let channels = d.next_power_of_two().max(64);
        let (element, bytes) = if call.scalar == FLOAT32 { ("f32", 4) } else { ("f16", 2) };
        let fragments = if bytes * channels > 256 { 1 } else { 2 };
        let (keys, columns) = (32 * fragments, 64 * fragments);
        let shared_bytes = keys * channels * bytes + 4 * source_words(call, keys, key_words);
        Self {
            kernel: format!("spark_prefill_matrix_{element}_{channels}"),
            columns,
            threads: PREFILL_THREADS,
            shared_bytes,
            resident: (device.shared_bytes / shared_bytes).clamp(1, MATRIX_BLOCKS),
            min_keys: MIN_PREFILL_KEYS,
            tail_cost: 1,
            // One block rotates them itself.
            rounds_keys: call.scalar != FLOAT32 && pairs > columns.into(),
        }
    }

    /// `MmaPrefill` of `ops/mma_prefill.h`.
    fn mma_prefill(call: &Call, key_words: u32) -> Self {
        let channels = call.head_dim.next_power_of_two().max(64);
        let keys = 64;
        Self {
            kernel: format!("spark_prefill_mma_{channels}"),
            columns: 128,
            threads: PREFILL_THREADS,
            shared_bytes: 2 * 2 * keys * channels + 4 * source_words(call, keys, key_words),
            resident: PREFILL_BLOCKS,
            min_keys: MIN_PREFILL_KEYS,
            tail_cost: 1,
            rounds_keys: true,
        }
    }

    /// `decode_quantised` of `ops/decode_matrix.h` where it can, else `decode` of `ops/decode.h`.
    fn decode(device: &Device, call: &Call, key_words: u32, pairs: u64) -> Self {
        let (octets, wave) = (octets_of(call.head_dim), device.wave_size);
        let planes = call.key_planes == 1;
        let quantised = (call.key_bits < 16 || planes) && call.value_bits < 16;
        // Drawn magnitudes differ by position, so such rows are read one by one.
        let can = quantised && call.recover <= RECOVER_MEAN && octets <= 16;
        let of = |matrix| {
            let columns = match pairs {
                0..=1 if matrix == MatrixCores::None || !planes => 1,
                // Registers have no room for more sums, where groups of channels have scales.
                _ if matrix == MatrixCores::Mfma && octets == 16 && call.value_bits == 4 && !planes => 4,
                0..=4 => 4,
                _ if matrix == MatrixCores::None && planes => 4,
                _ => 8,
            };
            let shared_bytes = decode_shared_bytes(call, wave, key_words, columns, matrix);
            let name = match matrix {
                MatrixCores::None if planes => "planes_",
                MatrixCores::None => "",
                MatrixCores::Mfma | MatrixCores::Mma if planes => "quantised_planes_",
                MatrixCores::Mfma | MatrixCores::Mma => "quantised_",
            };
            Self {
                kernel: format!("spark_decode_{name}{octets}x{columns}"),
                columns,
                threads: BLOCK_WAVES * wave,
                shared_bytes,
                resident: (device.shared_bytes / shared_bytes).clamp(1, decode_blocks(octets, columns, matrix, planes)),
                min_keys: MIN_DECODE_KEYS,
                tail_cost: if matrix == MatrixCores::None { 1 } else { MATRIX_TAIL_COST },
                rounds_keys: false,
            }
        };
        let matrix = of(if can { device.matrix } else { MatrixCores::None });
        // Rows may be longer than their fields, and whole ones come to LDS on NVIDIA GPUs.
        if matrix.shared_bytes > device.shared_bytes { of(MatrixCores::None) } else { matrix }
    }
}

/// Bytes of LDS of a decoding kernel for blocks of `columns` queries.
fn decode_shared_bytes(call: &Call, wave: u32, key_words: u32, columns: u32, matrix: MatrixCores) -> u32 {
    let d = call.head_dim;
    let octets = octets_of(d);
    let states = BLOCK_WAVES / 2 * columns * (d + 2);
    let tile = wave / octets * if columns > 1 { 2 } else { 4 };
    let staged = BLOCK_WAVES * (tile * key_words + KEY_SLACK_WORDS);
    // After the queries: the waves' rows, whose memory the states of all waves reuse; and after these the rows of keys
    // that are in the tail.
    let with_tiles = |tiles: u32| columns * d + tiles.max(2 * states) + if call.tail_window > 0 { staged } else { 0 };
    let words = match matrix {
        MatrixCores::None => ((columns + 1) * d).max(staged).max(states),
        MatrixCores::Mfma => {
            let planes = call.key_planes == 1;
            let (tables, slack) = if planes { (0, PLANE_SLACK_WORDS) } else { (MATRIX_TABLE_WORDS, KEY_SLACK_WORDS) };
            let fields = (MATRIX_KEYS * key_words + slack).next_multiple_of(4);
            with_tiles(tables + BLOCK_WAVES * (fields + 4 * MATRIX_KEYS))
        }
        MatrixCores::Mma => {
            // Two buffers of key and value rows, and factors of keys.
            let rows = (call.key_row_bytes + call.value_row_bytes) / 4;
            let slack = (MMA_KEY_SLACK_BYTES + MMA_VALUE_SLACK_BYTES) / 4;
            with_tiles(BLOCK_WAVES * (2 * (MATRIX_KEYS * rows + slack) + 4 * MATRIX_KEYS))
        }
    };
    4 * (d + words)
}

/// Words of LDS that `Source` of `ops/source.h` takes for tiles of `keys` keys.
fn source_words(call: &Call, keys: u32, key_words: u32) -> u32 {
    call.head_dim + keys * key_words + KEY_SLACK_WORDS + if call.tail_window > 0 { keys } else { 0 }
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
    let wave = check(device)?;
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
    // A window longer than all keys has no effect.
    call.window = settings.window.map_or(0, |w| u32::try_from(w).unwrap_or(0));
    set_bias(&mut call, tensors);
    let tail_window = if inputs.past_recent.is_null() { settings.common.tail_window } else { 0 };
    // Nothing is read where nothing is past.
    let free = lengths.past.iter().map(|&past| if past > 0 { geometry.past - past } else { 0 });
    let tails = tails(geometry, tail_window, free)?;
    if tails.iter().any(|&kept| kept > 0) {
        call.tail_window = narrow("tail_window", tail_window)?;
    }
    let mut plan = Plan::default();
    if new == 0 {
        return Ok(plan);
    }
    let key_words = row_words(geometry).0;
    let attend = Attend::new(device, &call, key_words);
    let blocks = (u64::from(call.group) * new as u64).div_ceil(attend.columns.into());
    let next_group = |first| match attend.rounds_keys {
        true => rounded::next_group(device, &call, lengths, blocks, first),
        false => (MAX_SEQUENCES as usize, false),
    };
    let mut first = 0;
    while first < batch {
        let (count, unpacks) = next_group(first);
        let mut call = sequences(&call, lengths, &tails, first, count);
        first += count;
        // Nothing is stored where nothing is past.
        call.value_rotated &= u32::from(call.sequence[..call.sequences as usize].iter().any(|s| s.past > 0));
        (call.splits, call.split_keys) = pieces(device, &attend, &call, blocks * kv_heads as u64);
        let states = call.sequences as usize * query_heads * new * call.splits as usize;
        let splits = u64::from(call.splits);
        let mut workspace_bytes = if call.splits > 1 { states * (d + 2) * 4 } else { 0 };
        if attend.rounds_keys {
            workspace_bytes = rounded::place(&mut call, workspace_bytes, unpacks);
        }
        let mut in_basis = None;
        if call.key_planes == 1 {
            let (changed, reads, end) = basis::change(device, &mut plan, &call, workspace_bytes)?;
            (call, in_basis, workspace_bytes) = (changed, Some(reads), end);
        }
        plan.workspace_bytes = plan.workspace_bytes.max(workspace_bytes);
        let first_launch = plan.launches.len();
        if attend.rounds_keys {
            rounded::write(device, &mut plan, &call, 4 * source_words(&call, UNPACK_KEYS, key_words))?;
        }
        let Attend { kernel, threads, shared_bytes, .. } = &attend;
        let blocks = blocks * kv_heads as u64 * splits;
        plan.launches.push(launch(device, kernel.clone(), blocks, *threads, *shared_bytes, call)?);
        if call.splits > 1 {
            let queries = (query_heads * new) as u64;
            let blocks = queries.div_ceil(BLOCK_WAVES.into());
            plan.launches.push(launch(device, "spark_merge".into(), blocks, BLOCK_WAVES * wave, 0, call)?);
        }
        plan.launches[first_launch..].iter_mut().for_each(|l| l.in_basis = in_basis);
    }
    Ok(plan)
}

fn set_bias(call: &mut Call, tensors: &AttentionTensors) {
    if !tensors.bias.is_null() {
        let [batches, heads, rows, columns] = tensors.bias_shape.map(|n| n as i64);
        call.bias = tensors.bias;
        call.bias_batch = if batches == 1 { 0 } else { heads * rows * columns };
        call.bias_head = if heads == 1 { 0 } else { rows * columns };
        call.bias_token = columns;
    }
}

/// Pieces that the keys of a sequence are cut into, and keys of a piece, for a launch of `blocks` blocks a sequence.
fn pieces(device: &Device, attend: &Attend, call: &Call, blocks: u64) -> (u32, u32) {
    let rotated = call.value_rotated == 1;
    let keys = call.sequence[..call.sequences as usize]
        .iter()
        .filter(|s| s.valid > 0)
        .map(|s| s.past + if rotated { 0 } else { s.valid } - first_seen(call, s.past as usize) as u32);
    let keys = keys.max().unwrap_or(0).max(1);
    let tail = call.sequence[..call.sequences as usize].iter().map(|s| s.tail.min(s.past)).max().unwrap_or(0);
    let at_once = u64::from(device.compute_units.max(1)) * u64::from(attend.resident);
    // The new keys are a piece of their own where the values of stored ones are rotated.
    let more = u32::from(rotated);
    let wanted = (at_once / (blocks * u64::from(call.sequences)).max(1)).saturating_sub(more.into());
    let wanted = wanted.clamp(1, u64::from(keys.div_ceil(attend.min_keys))) as u32;
    let split_keys = (keys + (attend.tail_cost - 1) * tail).div_ceil(wanted).next_multiple_of(PIECE);
    (keys.div_ceil(split_keys) + more, split_keys)
}
