//! The SparK method (arXiv 2508.15212, section 3): query saliency, choice of kept channels, recovery.
//!
//! Plain functions on one head at a time; they know nothing of rows or tensors.

mod saliency;
mod selection;

pub use saliency::{MIN_OBSERVED, Saliency};
pub use selection::{recovery_magnitude, select};

/// What a pruned channel is read as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recovery {
    /// Its sign times the row's mean magnitude (the paper's recovery by the pruned channels' statistics).
    Mean,
    /// Zero.
    None,
}

/// Channel scale `c_j = 1 / sqrt(query_saliency_j)` of channels with positive, finite `query_saliency`.
pub fn channel_scale(query_saliency: f32) -> f32 {
    1.0 / query_saliency.sqrt()
}
