//! Quantised value rows of a chunk, and their weights in int16.

use crate::cpu::decode::chunk::CHUNK;
use crate::cpu::decode::prefetch::Prefetch;
use crate::cpu::isa::vector::Vector;
use crate::format::v1::layout::{MAX_HEAD_DIM, ValueLayout};

/// Most pairs of scale and minimum of a row.
pub(super) const MOST_GROUPS: usize = MAX_HEAD_DIM / 32;

/// Value rows that may be read.
pub(super) struct ValueRows<'a, V> {
    pub(super) layout: &'a ValueLayout,
    /// `count` rows
    rows: &'a [u8],
    /// At least 1, at most [`CHUNK`].
    pub(super) count: usize,
    prefetch: &'a Prefetch<'a>,
    v: V,
}

impl<'a, V: Vector> ValueRows<'a, V> {
    /// The `count` first of `rows`.
    pub(super) fn new(v: V, layout: &'a ValueLayout, rows: &'a [u8], count: usize, prefetch: &'a Prefetch<'a>) -> Self {
        assert!((1..=CHUNK).contains(&count));
        Self { layout, rows: &rows[..count * layout.row_bytes()], count, prefetch, v }
    }

    /// The row of `key`, all its bytes; the last row for keys after it.
    #[inline]
    pub(super) fn at(&self, key: usize) -> *const u8 {
        self.rows.as_ptr().wrapping_add(key.min(self.count - 1) * self.layout.row_bytes())
    }

    /// As row number `n` is read: asks for rows that will be read later.
    #[inline(always)]
    pub(super) fn prefetch(&self, n: usize) {
        self.prefetch.at_value(self.v, n);
    }
}

/// Weights of `H` queries times the scales of each group of channels, in int16 or uint8.
pub(in crate::cpu) struct ScaledWeights<const H: usize>(pub(super) [Group<H>; MOST_GROUPS]);

impl<const H: usize> Default for ScaledWeights<H> {
    #[inline(always)]
    fn default() -> Self {
        Self([Group::ZERO; MOST_GROUPS])
    }
}

/// Weights of `H` queries times the scales of one group of channels.
#[derive(Clone, Copy)]
pub(super) struct Group<const H: usize> {
    /// Of two keys, one after the other, in int16; or in the first half, of four keys in uint8.
    pub(super) together: [[i32; CHUNK / 2]; H],
    /// What 1 stands for.
    pub(super) units: [f32; H],
    /// What the minima weigh, and with them what was taken from codes.
    pub(super) least: [f32; H],
}

impl<const H: usize> Group<H> {
    const ZERO: Self = Self { together: [[0; CHUNK / 2]; H], units: [0.0; H], least: [0.0; H] };

    /// Of `N` queries from number `first` on.
    #[inline]
    pub(super) fn together<const N: usize>(&self, first: usize) -> &[[i32; CHUNK / 2]; N] {
        self.together[first..].first_chunk().expect("so many queries")
    }
}
