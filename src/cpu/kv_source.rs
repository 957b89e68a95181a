//! Where the keys and values of a call lie: cached rows, the dense recent window, or the new tokens.

use std::ops::Range;

use super::attention::Attention;
use super::decode::kernels::KeyRows;
use super::isa::vector::Vector;
use super::new_tokens::NewTokens;
use super::query_block::QueryBlock;
use super::tail::Vectors;
use crate::element::Element;
use crate::method::Recovery;

/// The keys and values of one call.
pub(super) struct KvSource<'a, 'c, T> {
    pub(super) call: &'a Attention<'c, T>,
    pub(super) new: NewTokens<'a, 'c, T>,
}

/// Keys between two positions that lie in the same place.
#[derive(Clone, Copy)]
pub(super) enum Place {
    /// Key and value rows.
    Rows,
    /// Keys that are read one by one, dense ones of the recent window or rows with drawn magnitudes, and value rows.
    OneByOne,
    /// Dense keys and values of the call.
    New,
}

impl<'a, 'c, T: Element> KvSource<'a, 'c, T> {
    pub(super) fn new(call: &'a Attention<'c, T>) -> Self {
        Self { call, new: NewTokens::new(call) }
    }

    /// `keys` of the (sequence, KV head) number `head`, in pieces of at most `size` that each lie in one place.
    pub(super) fn pieces(
        &self,
        head: usize,
        keys: Range<usize>,
        size: usize,
    ) -> impl Iterator<Item = (Place, Range<usize>)> {
        let past = self.call.lengths.past[head / self.call.geometry.kv_heads];
        let recent = self.call.recent_keys(head);
        let rows = if self.recovery().is_sampled() { Place::OneByOne } else { Place::Rows };
        let mut from = keys.start;
        std::iter::from_fn(move || {
            if from >= keys.end {
                return None;
            }
            let (place, end) = match from {
                _ if from < past - recent => (rows, past - recent),
                _ if from < past => (Place::OneByOne, past),
                _ => (Place::New, usize::MAX),
            };
            let piece = from..keys.end.min(end).min(from + size);
            from = piece.end;
            Some((place, piece))
        })
    }

    /// Reads the keys at `positions`, of a piece that is read one by one, to `keys`, `[positions, D]`.
    #[inline(always)]
    pub(super) fn one_by_one<V: Vector>(&self, v: V, block: &QueryBlock, positions: Range<usize>, keys: &mut [f32]) {
        let past = self.call.lengths.past[block.sequence];
        if positions.start >= past - self.call.recent_keys(block.head) {
            return self.call.read_recent(Vectors(v), block.head, positions, keys);
        }
        let d = self.call.geometry.head_dim();
        for (position, key) in positions.zip(keys.chunks_exact_mut(d)) {
            self.call.read_row(block.head, position, key);
        }
    }

    fn recovery(&self) -> Recovery {
        self.call.settings.common.recovery
    }

    /// How key rows are to be read, other than one by one.
    pub(super) fn key_rows(&self) -> KeyRows<'a> {
        KeyRows { layout: &self.call.geometry.key, recover: self.recovery() == Recovery::Mean }
    }
}
