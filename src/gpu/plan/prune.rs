//! The write path.

use super::tail::tails;
use super::tensors::base;
use super::{Device, Inputs, Plan, PlanError, PruneOutputs, check, launch, narrow, row_words, sequences};
use crate::call::{Geometry, Lengths, PruneSettings};
use crate::gpu::limits::{
    BLOCK_WAVES, GROW_THREADS, GROW_WORDS, MAX_HEAD_DIM, MAX_SEQUENCES, RECENT_THREADS, SALIENCY_THREADS,
};
use crate::method::MIN_OBSERVED;

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
    let wave = check(device)?;
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
    let shared = call.grow == 0;
    let tail_window = if shared { settings.common.tail_window } else { 0 };
    let used = lengths.past.iter().zip(&lengths.new).map(|(past, new)| past + new);
    let tails = tails(geometry, tail_window, used.map(|used| lengths.present(geometry) - used))?;
    call.tail_window = narrow("tail_window", tail_window)?;
    let heads = kv_heads as u64;
    let mut plan = Plan::default();
    for first in (0..batch).step_by(MAX_SEQUENCES as usize) {
        let call = sequences(&call, lengths, &tails, first, MAX_SEQUENCES as usize);
        if !call.present_recent.is_null() && call.present_recent_rows > 0 {
            let blocks = u64::from(call.present_recent_rows) * heads;
            let shared = if call.key_planes == 1 { 4 * call.head_dim } else { 0 };
            plan.launches.push(launch(device, "spark_recent".into(), blocks, RECENT_THREADS, shared, call)?);
        }
        if call.grow != 0 && call.present_rows > 0 {
            let words = u64::from(call.present_rows) * (key.row_bytes().max(value.row_bytes()) / 4) as u64;
            let blocks = words.div_ceil((GROW_THREADS * GROW_WORDS).into()) * heads * 2;
            plan.launches.push(launch(device, "spark_grow".into(), blocks, GROW_THREADS, 0, call)?);
        }
        let own = &call.sequence[..call.sequences as usize];
        let by_own = call.key_planes == 0 && own.iter().any(|s| s.valid as usize >= MIN_OBSERVED);
        if !call.observed_saliency.is_null() || by_own {
            plan.workspace_bytes = plan.workspace_bytes.max(own.len() * kv_heads * d * 4);
            plan.launches.push(launch(
                device,
                "spark_saliency".into(),
                heads,
                SALIENCY_THREADS,
                SALIENCY_THREADS * 4,
                call,
            )?);
        }
        if own.iter().any(|s| s.valid > 0) {
            let (key_words, value_words) = row_words(geometry);
            let (kernel, codes) = match call.key_planes {
                0 => ("spark_prune", MAX_HEAD_DIM),
                _ => ("spark_prune_planes", 5 * MAX_HEAD_DIM),
            };
            let shared = BLOCK_WAVES * (4 * key_words.max(value_words) + codes);
            let blocks = new.div_ceil(BLOCK_WAVES as usize) as u64 * heads;
            plan.launches.push(launch(device, kernel.into(), blocks, BLOCK_WAVES * wave, shared, call)?);
        }
    }
    Ok(plan)
}
