//! The sizes of a layer, and the work that it does.

use super::cache::{Cache, Heads};

/// Sizes common to all layers of a run.
#[derive(Clone, Copy, Debug, serde::Serialize)]
pub struct Shape {
    pub heads: Heads,
    pub head_dim: usize,
    pub batch: usize,
}

impl Shape {
    /// Bytes that a token adds to `cache`.
    pub fn bytes_per_token(&self, cache: &Cache) -> usize {
        self.heads.kv * cache.row_bytes(self.head_dim)
    }
}

/// The work of a layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Work {
    /// Attend and store.
    All,
    /// Only store, which GroupQueryAttention cannot do.
    Store,
}
