//! Keys and values of the new tokens of a call, as attention reads them.

use std::ops::Range;

use ndarray::Array2;

use super::attention::Attention;
use crate::element::Element;

/// Rotated keys, and values, of the new tokens of a call, in float32. They are made where they are needed, some at a
/// time: all of a long prompt would be as large as its keys and values are.
pub(super) struct NewTokens<'a, 'c, T>(&'a Attention<'c, T>);

impl<'a, 'c, T: Element> NewTokens<'a, 'c, T> {
    pub(super) fn new(call: &'a Attention<'c, T>) -> Self {
        Self(call)
    }

    /// Writes keys and values of new `tokens`, `[tokens, D]` each. `head` is the number of the (sequence, KV head).
    #[inline(always)]
    pub(super) fn read(&self, head: usize, tokens: Range<usize>, key: &mut [f32], value: &mut [f32]) {
        let Attention { geometry, tokens: new, .. } = self.0;
        let (b, h) = (head / geometry.kv_heads, head % geometry.kv_heads);
        new.keys(b, h, tokens.clone(), key);
        new.values(b, h, tokens, value);
    }

    /// Keys and values of new tokens `from` to `to`, `[tokens, D]`.
    #[inline(always)]
    pub(super) fn rows(&self, head: usize, from: usize, to: usize) -> [Array2<f32>; 2] {
        let [mut key, mut value] = [(); 2].map(|()| Array2::zeros((to - from, self.0.geometry.head_dim())));
        let slices = (key.as_slice_mut().expect("contiguous"), value.as_slice_mut().expect("contiguous"));
        self.read(head, from..to, slices.0, slices.1);
        [key, value]
    }
}
