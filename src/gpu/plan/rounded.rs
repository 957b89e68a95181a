//! Keys and values in float16 that prompts on matrix cores read from the workspace: what `ops/rounded.h` writes.
//!
//! A block of queries decodes the rows that it reads. Decoding all of them once, with 4 D bytes of each written and
//! read, takes a little more than one block does for itself, so it pays where [`MIN_BLOCKS`] would.

use super::{Device, Plan, PlanError, first_seen, launch};
use crate::call::Lengths;
use crate::gpu::limits::{MAX_SEQUENCES, PREFILL_THREADS, ROUND_THREADS, UNPACK_KEYS};
use crate::gpu::params::Call;

/// Fewest blocks of a KV head for which its rows are decoded once.
const MIN_BLOCKS: u64 = 3;

/// How many sequences from `first` on the next launches take, `blocks` blocks of each KV head, and whether their rows
/// are decoded once.
pub(super) fn next_group(device: &Device, call: &Call, lengths: &Lengths, blocks: u64, first: usize) -> (usize, bool) {
    let past = &lengths.past[first..lengths.past.len().min(first + MAX_SEQUENCES as usize)];
    if blocks < MIN_BLOCKS || device.unpacked_bytes == 0 {
        return (past.len(), false);
    }
    let fits = |sequences, rows| sequences * rows_bytes(call, rows) <= device.unpacked_bytes;
    let rows = |&past: &usize| unpacked_rows(call, past);
    // Those without rows go with any others.
    let stored = past.iter().map(rows).find(|&rows| rows > 0);
    if stored.is_none_or(|rows| !fits(1, rows)) {
        let next = past.iter().position(|past| rows(past) > 0 && fits(1, rows(past)));
        return (next.unwrap_or(past.len()), false);
    }
    // There is room for the longest of a group as often as it has sequences.
    let mut longest = 0;
    let grow = past.iter().enumerate().take_while(|(n, past)| {
        longest = longest.max(rows(past));
        fits(n + 1, longest)
    });
    (grow.count(), true)
}

/// Rows of a sequence with `past` tokens from the first one on that a query sees, in whole tiles.
fn unpacked_rows(call: &Call, past: usize) -> usize {
    past - first_seen(call, past) / UNPACK_KEYS as usize * UNPACK_KEYS as usize
}

/// Bytes of the keys and values of `tokens` tokens.
fn rows_bytes(call: &Call, tokens: usize) -> usize {
    2 * 2 * tokens * call.kv_heads as usize * call.head_dim as usize
}

/// Bytes of the workspace that the unpacked rows of `call` take.
pub(super) fn unpacked_bytes(call: &Call) -> usize {
    call.sequences as usize * rows_bytes(call, call.unpacked as usize)
}

/// Says in `call` that the new keys are in the workspace from `first` on, and behind them the stored rows, decoded, if
/// `unpacks`. Returns where they end.
pub(super) fn place(call: &mut Call, first: usize, unpacks: bool) -> usize {
    let sequences = call.sequences as usize;
    call.rounded_keys = 1;
    let rows = call.sequence[..sequences].iter().map(|s| unpacked_rows(call, s.past as usize)).max();
    let rows = rows.filter(|_| unpacks).unwrap_or(0);
    call.unpacked = rows as u32;
    first.next_multiple_of(16) + sequences * rows_bytes(call, call.new_tokens as usize) / 2 + unpacked_bytes(call)
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
