//! The new tokens of a call: queries, keys and values, rotated where asked.

use std::ops::Range;

use ndarray::{ArrayView1, ArrayView2, ArrayView4, s};

use crate::call::Rotary;
use crate::element::{Element, finite};
use crate::format::MAX_HEAD_DIM;

/// Rotary position embedding (RoFormer, as in GroupQueryAttention with do_rotary).
#[derive(Clone, Copy, Debug)]
pub struct Rotation<'a, T> {
    /// Which channels are paired.
    pub style: Rotary,
    /// `[positions, D/2]`
    pub cos: ArrayView2<'a, T>,
    /// `[positions, D/2]`
    pub sin: ArrayView2<'a, T>,
    /// Row of cos and sin for every new token, `[B * L]`.
    pub positions: &'a [usize],
}

/// A change of basis of queries and keys, after their rotation: rows are multiplied by the matrix of their KV head, and
/// products of the two stay what they are.
#[derive(Clone, Copy, Debug)]
pub struct Basis<'a> {
    /// For keys, `[Hk, D, D]`.
    pub key: &'a [f32],
    /// For queries, `[Hk, D, D]`; queries stay as they are without it.
    pub query: Option<&'a [f32]>,
}

/// Directions that are found at once.
const DIRECTIONS: usize = 64;

/// Replaces `x` by `x M`, finite, M being the matrix of KV head `h` of `matrices`.
#[inline(always)]
fn change_basis(matrices: &[f32], h: usize, x: &mut [f32]) {
    let d = x.len();
    let matrix = &matrices[h * d * d..(h + 1) * d * d];
    let mut from = [0.0; MAX_HEAD_DIM];
    from[..d].copy_from_slice(x);
    let from = &from[..d];
    let rest = find::<DIRECTIONS>(matrix, from, x);
    let rest = find::<{ DIRECTIONS / 4 }>(matrix, from, rest);
    let rest = find::<{ DIRECTIONS / 8 }>(matrix, from, rest);
    find::<1>(matrix, from, rest);
}

/// Sets the first of the last directions of `x M`, finite, `N` as often as there are so many, and returns the others.
/// `N` is a constant so that their sums stay in registers.
#[inline(always)]
fn find<'o, const N: usize>(matrix: &[f32], x: &[f32], last: &'o mut [f32]) -> &'o mut [f32] {
    let mut first = x.len() - last.len();
    let (found, rest) = last.as_chunks_mut::<N>();
    for out in found {
        let mut sums = [0.0; N];
        for (row, x) in matrix.chunks_exact(x.len()).zip(x) {
            let row: &[f32; N] = row[first..].first_chunk().expect("so many directions");
            for (sum, m) in sums.iter_mut().zip(row) {
                *sum += x * m;
            }
        }
        *out = sums.map(finite);
        first += N;
    }
    rest
}

/// Writes the elements of `row`, finite, to `out`.
#[inline(always)]
fn read<T: Element>(row: ArrayView1<'_, T>, out: &mut [f32]) {
    match row.as_slice() {
        Some(row) => T::read(row, out),
        None => out.iter_mut().zip(row).for_each(|(o, x)| *o = x.finite()),
    }
}

impl<T: Element> Rotation<'_, T> {
    /// Rotates `x` (`D` channels) as new token number `token` of the batch.
    #[inline(always)]
    fn apply(&self, token: usize, x: &mut [f32]) {
        let row = self.positions[token];
        let half = x.len() / 2;
        let (mut cos, mut sin) = ([0.0; MAX_HEAD_DIM / 2], [0.0; MAX_HEAD_DIM / 2]);
        let (cos, sin) = (&mut cos[..half], &mut sin[..half]);
        read(self.cos.row(row), cos);
        read(self.sin.row(row), sin);
        let angles = cos.iter().zip(&*sin);
        let rotate = |x0: &mut f32, x1: &mut f32, (cos, sin): (&f32, &f32)| {
            (*x0, *x1) = (*x0 * cos - *x1 * sin, *x0 * sin + *x1 * cos);
        };
        match self.style {
            Rotary::Halves => {
                let (first, second) = x.split_at_mut(half);
                first.iter_mut().zip(second).zip(angles).for_each(|((x0, x1), angle)| rotate(x0, x1, angle));
            }
            Rotary::Interleaved => {
                x.as_chunks_mut().0.iter_mut().zip(angles).for_each(|([x0, x1], angle)| rotate(x0, x1, angle));
            }
        }
    }
}

/// The new tokens of a call, wherever they lie in memory; every read is finite.
#[derive(Clone, Copy, Debug)]
pub struct Tokens<'a, T> {
    /// `[B, Hq, L, D]`
    pub query: ArrayView4<'a, T>,
    /// `[B, Hk, L, D]`
    pub key: ArrayView4<'a, T>,
    /// `[B, Hk, L, D]`
    pub value: ArrayView4<'a, T>,
    /// Rotation of query and key, if any.
    pub rotation: Option<Rotation<'a, T>>,
    /// The basis that queries and keys are changed to behind it, if any.
    pub basis: Option<Basis<'a>>,
}

impl<T: Element> Tokens<'_, T> {
    #[inline(always)]
    fn rotate(&self, (b, i): (usize, usize), x: &mut [f32]) {
        if let Some(rotation) = &self.rotation {
            let tokens = self.query.dim().2;
            rotation.apply(b * tokens + i, x);
            // A rotation may lengthen a channel past the range that rows and sums are made for.
            x.iter_mut().for_each(|x| *x = finite(*x));
        }
    }

    /// The same tokens in the basis of the model's own channels.
    pub fn without_basis(&self) -> Self {
        Self { basis: None, ..*self }
    }

    /// Query head `h` of new token `i` of sequence `b`, rotated and in the basis.
    #[inline(always)]
    pub fn query(&self, b: usize, h: usize, i: usize, out: &mut [f32]) {
        read(self.query.slice(s![b, h, i, ..]), out);
        self.rotate((b, i), out);
        if let Some(matrices) = self.basis.and_then(|basis| basis.query) {
            let group = self.query.dim().1 / self.key.dim().1;
            change_basis(matrices, h / group, out);
        }
    }

    /// Key of KV head `h` of new token `i` of sequence `b`, rotated and in the basis.
    #[inline(always)]
    pub fn key(&self, b: usize, h: usize, i: usize, out: &mut [f32]) {
        self.keys(b, h, i..i + 1, out);
    }

    /// Value of KV head `h` of new token `i` of sequence `b`.
    #[inline(always)]
    pub fn value(&self, b: usize, h: usize, i: usize, out: &mut [f32]) {
        self.values(b, h, i..i + 1, out);
    }

    /// Keys of KV head `h` of new `tokens` of sequence `b`, rotated and in the basis, one after the other.
    #[inline(always)]
    pub fn keys(&self, b: usize, h: usize, tokens: Range<usize>, out: &mut [f32]) {
        let rows = self.key.slice(s![b, h, tokens.clone(), ..]);
        for ((i, row), out) in tokens.zip(rows.rows()).zip(out.chunks_exact_mut(rows.ncols())) {
            read(row, out);
            self.rotate((b, i), out);
            if let Some(basis) = self.basis {
                change_basis(basis.key, h, out);
            }
        }
    }

    /// Values of KV head `h` of new `tokens` of sequence `b`, one after the other.
    #[inline(always)]
    pub fn values(&self, b: usize, h: usize, tokens: Range<usize>, out: &mut [f32]) {
        let rows = self.value.slice(s![b, h, tokens, ..]);
        for (row, out) in rows.rows().into_iter().zip(out.chunks_exact_mut(rows.ncols())) {
            read(row, out);
        }
    }
}
