//! The new tokens of a call: queries, keys and values, rotated where asked.

use ndarray::{ArrayView2, ArrayView4, s};

use crate::call::Rotary;
use crate::element::Element;

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

impl<T: Element> Rotation<'_, T> {
    /// Rotates `x` (`D` channels) as new token number `token` of the batch.
    fn apply(&self, token: usize, x: &mut [f32]) {
        let row = self.positions[token];
        let half = x.len() / 2;
        for j in 0..half {
            let (i0, i1) = match self.style {
                Rotary::Halves => (j, j + half),
                Rotary::Interleaved => (2 * j, 2 * j + 1),
            };
            let (cos, sin) = (self.cos[(row, j)].finite(), self.sin[(row, j)].finite());
            let (x0, x1) = (x[i0], x[i1]);
            x[i0] = x0 * cos - x1 * sin;
            x[i1] = x0 * sin + x1 * cos;
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
}

impl<T: Element> Tokens<'_, T> {
    fn read(tensor: &ArrayView4<'_, T>, (b, h, i): (usize, usize, usize), out: &mut [f32]) {
        out.iter_mut().zip(tensor.slice(s![b, h, i, ..])).for_each(|(o, x)| *o = x.finite());
    }

    fn rotate(&self, (b, i): (usize, usize), x: &mut [f32]) {
        if let Some(rotation) = &self.rotation {
            let tokens = self.query.dim().2;
            rotation.apply(b * tokens + i, x);
            // A rotation may lengthen a channel past the range that rows and sums are made for.
            x.iter_mut().for_each(|x| *x = x.finite());
        }
    }

    /// Query head `h` of new token `i` of sequence `b`, rotated.
    pub fn query(&self, b: usize, h: usize, i: usize, out: &mut [f32]) {
        Self::read(&self.query, (b, h, i), out);
        self.rotate((b, i), out);
    }

    /// Key of KV head `h` of new token `i` of sequence `b`, rotated.
    pub fn key(&self, b: usize, h: usize, i: usize, out: &mut [f32]) {
        Self::read(&self.key, (b, h, i), out);
        self.rotate((b, i), out);
    }

    /// Value of KV head `h` of new token `i` of sequence `b`.
    pub fn value(&self, b: usize, h: usize, i: usize, out: &mut [f32]) {
        Self::read(&self.value, (b, h, i), out);
    }
}
