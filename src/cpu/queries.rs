//! Which queries read their keys together.

use std::ops::Range;

/// The queries of some new tokens of one sequence, of the heads that share one KV head.
#[derive(Clone, Debug)]
pub(super) struct Queries {
    pub(super) sequence: usize,
    pub(super) kv_head: usize,
    pub(super) tokens: Range<usize>,
}
