//! Queries and keys in a basis, for the read path.

use super::{Device, InBasis, Plan, PlanError, TokensAt, launch};
use crate::gpu::limits::{BASIS_THREADS, BASIS_TOKENS};
use crate::gpu::params::{Call, Tokens};

/// Adds the launch that writes the new queries and keys of `call`, rotated and in the basis, to the workspace from
/// `first` on. Returns the call that reads them there, and where the workspace ends.
pub(super) fn change(
    device: &Device,
    plan: &mut Plan,
    call: &Call,
    first: usize,
) -> Result<(Call, InBasis, usize), PlanError> {
    let &Call { new_tokens, head_dim: d, group, kv_heads, sequences, .. } = call;
    let bytes =
        |heads: u32| (sequences as usize * heads as usize * new_tokens as usize * d as usize * 4).next_multiple_of(16);
    let queries = first.next_multiple_of(16);
    let keys = queries + bytes(call.query_heads);
    let at = TokensAt { queries, keys };

    let rows = BASIS_TOKENS * (BASIS_THREADS / d);
    let blocks =
        (u64::from(group) * u64::from(new_tokens)).div_ceil(rows.into()) + u64::from(new_tokens).div_ceil(rows.into());
    let blocks = blocks * u64::from(kv_heads);
    let mut changes = launch(device, "spark_basis".into(), blocks, BASIS_THREADS, 4 * rows * d, *call)?;
    changes.in_basis = Some(InBasis::Writes(at));
    plan.launches.push(changes);

    let tokens = |heads: u32| {
        let head = i64::from(new_tokens) * i64::from(d);
        Tokens { data: std::ptr::null(), batch: i64::from(heads) * head, head, token: d.into() }
    };
    let call = Call { query: tokens(call.query_heads), key: tokens(kv_heads), rotary: 0, in_basis: 1, ..*call };
    Ok((call, InBasis::Reads(at), keys + bytes(kv_heads)))
}
