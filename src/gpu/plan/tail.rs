//! The tails of shared buffers: how many keys each of them keeps.

use super::{PlanError, narrow};
use crate::call::Geometry;
use crate::format::TailSize;

/// Keys that the tail of each sequence keeps beside `free` rows, at most `window`.
///
/// # Errors
/// If a kernel cannot number the slots in 32 bits.
pub(super) fn tails(
    geometry: &Geometry,
    window: usize,
    free: impl Iterator<Item = usize>,
) -> Result<Vec<u32>, PlanError> {
    let size = TailSize::new(&geometry.key, &geometry.value, window);
    // `Tail` of ops/tail.h multiplies numbers of slots, of the window before it was halved too, by these bytes.
    let most_bytes = (2 * geometry.head_dim()).max(geometry.key.row_bytes());
    let tail = |free| {
        let kept = size.kept(free);
        narrow("the tail of a buffer", (2 * kept + 2).saturating_mul(most_bytes))?;
        Ok(kept as u32)
    };
    free.map(tail).collect()
}
