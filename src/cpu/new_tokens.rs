//! Keys and values of the new tokens of a call, as attention reads them.

use std::sync::Mutex;

use ndarray::ArrayView2;

use super::{Attention, Pool};
use crate::call::Geometry;
use crate::element::Element;

/// Rotated keys, and values, of the new tokens of a call, in float32.
pub(super) struct NewTokens {
    head_dim: usize,
    /// Keys and values of each (sequence, KV head), the head varying fastest, `[L, D]` each.
    heads: Vec<(Vec<f32>, Vec<f32>)>,
}

impl NewTokens {
    pub(super) fn read<T: Element>(pool: &impl Pool, call: &Attention<'_, T>) -> Self {
        let Geometry { kv_heads, new, .. } = *call.geometry;
        let d = call.geometry.head_dim();
        let heads: Vec<_> = (0..call.geometry.batch * kv_heads).map(|_| Mutex::new(Default::default())).collect();
        pool.par_for(heads.len(), &|head| {
            let (b, h) = (head / kv_heads, head % kv_heads);
            let (mut key, mut value) = (vec![0.0; new * d], vec![0.0; new * d]);
            let rows = key.chunks_exact_mut(d).zip(value.chunks_exact_mut(d));
            for (i, (key, value)) in rows.enumerate().take(call.lengths.new[b]) {
                call.tokens.key(b, h, i, key);
                call.tokens.value(b, h, i, value);
            }
            *heads[head].lock().unwrap() = (key, value);
        });
        Self { head_dim: d, heads: heads.into_iter().map(|h| h.into_inner().unwrap()).collect() }
    }

    /// Key and value of new token `i`.
    pub(super) fn row(&self, head: usize, i: usize) -> (&[f32], &[f32]) {
        let (key, value) = &self.heads[head];
        let at = i * self.head_dim..(i + 1) * self.head_dim;
        (&key[at.clone()], &value[at])
    }

    /// Keys and values of new tokens `from` to `to`, `[tokens, D]`.
    pub(super) fn rows(&self, head: usize, from: usize, to: usize) -> [ArrayView2<'_, f32>; 2] {
        let (key, value) = &self.heads[head];
        let at = from * self.head_dim..to * self.head_dim;
        [key, value].map(|x| ArrayView2::from_shape((to - from, self.head_dim), &x[at.clone()]).expect("whole tokens"))
    }
}
