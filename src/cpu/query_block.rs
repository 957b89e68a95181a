//! The queries that read the keys of one KV head together.

use std::ops::Range;

use super::attention::Attention;
use super::queries::Queries;
use crate::element::Element;

/// Queries of some new tokens of one sequence, of all query heads that share one KV head.
pub(super) struct QueryBlock {
    pub(super) sequence: usize,
    /// Number of the (sequence, KV head).
    pub(super) head: usize,
    /// (query head, new token) of each query, token by token.
    pub(super) items: Vec<(usize, usize)>,
    /// Channel scale c of the KV head.
    pub(super) scale: Range<usize>,
}

impl QueryBlock {
    pub(super) fn new<T>(call: &Attention<'_, T>, queries: &Queries) -> Self {
        let Queries { sequence, kv_head, tokens } = queries.clone();
        let (d, group) = (call.geometry.head_dim(), call.geometry.group());
        let items: Vec<_> = tokens.flat_map(|i| (0..group).map(move |g| (kv_head * group + g, i))).collect();
        let head = sequence * call.geometry.kv_heads + kv_head;
        Self { sequence, head, items, scale: kv_head * d..(kv_head + 1) * d }
    }

    /// The queries, rotated and in the basis, `[items, D]`.
    #[inline(always)]
    pub(super) fn queries<T: Element>(&self, call: &Attention<'_, T>) -> Vec<f32> {
        let d = call.geometry.head_dim();
        let mut queries = vec![0.0; self.items.len() * d];
        for (q, &(head, i)) in queries.chunks_exact_mut(d).zip(&self.items) {
            call.tokens.query(self.sequence, head, i, q);
        }
        queries
    }
}
