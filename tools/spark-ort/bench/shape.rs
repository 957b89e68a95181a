//! The sizes of a layer, and what it is to do.

use super::cache::{Cache, Heads};

/// Sizes that all layers of a run have in common.
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

/// What a layer does.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Work {
    /// Attend and store.
    All,
    /// Only store, which GroupQueryAttention cannot.
    Store,
}
