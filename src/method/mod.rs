//! The SparK method (arXiv 2508.15212, section 3): query saliency, choice of kept channels, recovery.
//!
//! Plain functions on one head at a time; they know nothing of rows or tensors.

mod recovery;
mod saliency;
mod selection;

pub use recovery::Recovery;
pub use saliency::{MIN_OBSERVED, Saliency};
pub use selection::{recovery_magnitude, select};

/// Channel scale `c_j = 1 / sqrt(query_saliency_j)` of channels with positive, finite `query_saliency`.
pub fn channel_scale(query_saliency: f32) -> f32 {
    1.0 / query_saliency.sqrt()
}
