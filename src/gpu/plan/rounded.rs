//! Keys and values in float16 that prompts on matrix cores read from the workspace: what `ops/rounded.h` writes.
//!
//! A block of queries decodes the rows that it reads. Decoding all of them once, with 4 D bytes of each written and
//! read, takes a little more than one block does for itself, so it pays where [`MIN_BLOCKS`] would.

use super::{Device, Plan, PlanError, launch};
use crate::call::Lengths;
use crate::gpu::limits::{MAX_SEQUENCES, PREFILL_THREADS, ROUND_THREADS, UNPACK_KEYS};
use crate::gpu::params::Call;

/// Fewest blocks of a KV head for which its rows are decoded once.
const MIN_BLOCKS: u64 = 3;

/// Sequences of `call` whose rows are decoded at once, if any are: for `blocks` blocks of each KV head.
pub(super) fn unpacked_at_once(device: &Device, call: &Call, lengths: &Lengths, blocks: u64) -> Option<usize> {
    let longest = lengths.past.iter().copied().max().unwrap_or(0);
    let bytes = rows_bytes(call, longest);
    let most = device.unpacked_bytes;
    (blocks >= MIN_BLOCKS && bytes > 0 && bytes <= most).then(|| (most / bytes).min(MAX_SEQUENCES as usize))
}

/// Bytes of the keys and values of `tokens` tokens.
fn rows_bytes(call: &Call, tokens: usize) -> usize {
    2 * 2 * tokens * call.kv_heads as usize * call.head_dim as usize
}

/// Says in `call` that the new keys are in the workspace from `first` on, and behind them the stored rows, decoded, if
/// `unpacks`. Returns where they end.
pub(super) fn place(call: &mut Call, first: usize, unpacks: bool) -> usize {
    let sequences = call.sequences as usize;
    call.rounded_keys = 1;
    if unpacks {
        call.unpacked = call.sequence[..sequences].iter().map(|s| s.past).max().unwrap_or(0);
    }
    let new = rows_bytes(call, call.new_tokens as usize) / 2;
    first.next_multiple_of(16) + sequences * (new + rows_bytes(call, call.unpacked as usize))
}

/// Adds the launches that write them. `source_bytes`: LDS for the rows of a block.
pub(super) fn write(device: &Device, plan: &mut Plan, call: &Call, source_bytes: u32) -> Result<(), PlanError> {
    let octets = u64::from(call.kv_heads) * u64::from(call.new_tokens) * u64::from(call.head_dim / 8);
    let blocks = octets.div_ceil(ROUND_THREADS.into());
    plan.launches.push(launch(device, "spark_round_keys".into(), blocks, ROUND_THREADS, 0, *call)?);
    if call.unpacked > 0 {
        let kernel = format!("spark_unpack_{}", call.head_dim.next_power_of_two().max(64));
        let blocks = u64::from(call.unpacked.div_ceil(UNPACK_KEYS)) * u64::from(call.kv_heads);
        plan.launches.push(launch(device, kernel, blocks, PREFILL_THREADS, source_bytes, *call)?);
    }
    Ok(())
}
