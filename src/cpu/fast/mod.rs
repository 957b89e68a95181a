//! Attention with vectors: `few` queries read rows as they are, `many` have tiles of rows decoded first.

mod ahead;
mod columns;
mod few;
#[cfg(target_arch = "x86_64")]
mod halves;
#[cfg(not(target_arch = "x86_64"))]
#[path = "halves_none.rs"]
mod halves;
mod keys;
#[cfg(target_arch = "x86_64")]
mod lanes;
mod many;
mod multiply;
mod scores;
mod stored;
mod tile;
mod values;
#[cfg(target_arch = "x86_64")]
mod whole;
#[cfg(not(target_arch = "x86_64"))]
#[path = "whole/none.rs"]
mod whole;

use std::marker::PhantomData;
use std::ops::Range;
use std::sync::Mutex;

use super::new_tokens::NewTokens;
use super::schedule::{Attend, Queries};
use super::vector::Vector;
use super::{Attention, SoftmaxState};
use crate::element::Element;
use crate::method::Recovery;

/// Queries of a block up to which rows are not decoded first.
const FEW: usize = 16;

/// The path of one call with the vectors of `V`.
pub(super) struct Fast<'a, 'c, T, V> {
    call: &'a Attention<'c, T>,
    new: NewTokens<'a, 'c, T>,
    /// What blocks of many queries work in, while none does.
    scratch: Mutex<Vec<many::Scratch>>,
    vector: PhantomData<V>,
}

/// Queries of one block, rotated: query head, new token, and `[D]` channels each.
struct Block {
    sequence: usize,
    /// Number of the (sequence, KV head).
    head: usize,
    /// (query head, new token) of each query, token by token.
    items: Vec<(usize, usize)>,
    /// `[items, D]`; `many` reads its own way, and leaves this empty.
    queries: Vec<f32>,
    /// Channel scale c of the KV head.
    scale: Range<usize>,
}

/// The `N` bytes at `at`.
#[inline(always)]
fn window<const N: usize>(bytes: &[u8], at: usize) -> &[u8; N] {
    bytes[at..at + N].first_chunk().expect("N bytes")
}

/// As [`window`], where a check, or rather what a compiler keeps in memory lest the check fails, would take longer than what
/// is done with the bytes.
///
/// # Safety
/// There are `N` bytes at `at`.
#[inline(always)]
unsafe fn window_unchecked<const N: usize>(bytes: &[u8], at: usize) -> &[u8; N] {
    debug_assert!(at + N <= bytes.len());
    // SAFETY: by this function's contract; arrays of bytes need no alignment.
    unsafe { &*bytes.as_ptr().add(at).cast() }
}

/// Keys between two positions that lie in the same place.
enum Place {
    /// Key and value rows.
    Rows,
    /// Dense keys and value rows, of the recent window.
    Recent,
    /// Dense keys and values of the call.
    New,
}

impl<'a, 'c, T: Element, V: Vector> Fast<'a, 'c, T, V> {
    pub(super) fn new(call: &'a Attention<'c, T>) -> Self {
        Self { call, new: NewTokens::new(call), scratch: Mutex::default(), vector: PhantomData }
    }

    fn block(&self, queries: &Queries) -> Block {
        let call = self.call;
        let Queries { sequence, kv_head, tokens } = queries.clone();
        let (d, group) = (call.geometry.head_dim(), call.geometry.group());
        let items: Vec<_> = tokens.flat_map(|i| (0..group).map(move |g| (kv_head * group + g, i))).collect();
        let head = sequence * call.geometry.kv_heads + kv_head;
        Block { sequence, head, items, queries: Vec::new(), scale: kv_head * d..(kv_head + 1) * d }
    }

    /// Reads the queries of `block`.
    fn queries(&self, block: &Block) -> Vec<f32> {
        let d = self.call.geometry.head_dim();
        let mut queries = vec![0.0; block.items.len() * d];
        for (q, &(head, i)) in queries.chunks_exact_mut(d).zip(&block.items) {
            self.call.tokens.query(block.sequence, head, i, q);
        }
        queries
    }

    /// `keys` of the (sequence, KV head) number `head`, in pieces of at most `size` that each lie in one place.
    fn pieces(&self, head: usize, keys: Range<usize>, size: usize) -> impl Iterator<Item = (Place, Range<usize>)> {
        let past = self.call.lengths.past[head / self.call.geometry.kv_heads];
        let recent = self.call.recent_keys(head);
        let mut from = keys.start;
        std::iter::from_fn(move || {
            if from >= keys.end {
                return None;
            }
            let (place, end) = match from {
                _ if from < past - recent => (Place::Rows, past - recent),
                _ if from < past => (Place::Recent, past),
                _ => (Place::New, usize::MAX),
            };
            let piece = from..keys.end.min(end).min(from + size);
            from = piece.end;
            Some((place, piece))
        })
    }

    /// Dense keys of the recent window at `positions`, `[positions, D]`.
    #[inline(always)]
    fn recent(&self, block: &Block, positions: Range<usize>) -> Vec<f32> {
        let mut keys = vec![0.0; positions.len() * self.call.geometry.head_dim()];
        self.call.read_recent(block.head, positions, &mut keys);
        keys
    }

    fn recovers(&self) -> bool {
        self.call.settings.common.recovery == Recovery::Mean
    }
}

impl<T: Element, V: Vector> Attend for Fast<'_, '_, T, V> {
    fn attend(&self, queries: &Queries, keys: Range<usize>) -> Vec<SoftmaxState> {
        let mut block = self.block(queries);
        match block.items.len() {
            0..=FEW => {
                block.queries = self.queries(&block);
                few::attend(self, &block, keys)
            }
            _ => many::attend(self, &block, keys),
        }
    }
}
