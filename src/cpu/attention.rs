//! A call of the read path: recovery attention over cached rows, dense attention over the new tokens.

use std::ops::Range;

use ndarray::ArrayView4;

use super::queries::Queries;
use super::tokens::Tokens;
use crate::call::{AttentionSettings, Geometry, Lengths};
use crate::element::Element;
use crate::format::TailLayout;

/// One call of the read path.
#[derive(Clone, Copy, Debug)]
pub struct Attention<'a, T> {
    /// Sizes.
    pub geometry: &'a Geometry,
    /// Lengths of the sequences.
    pub lengths: &'a Lengths,
    /// Attributes.
    pub settings: &'a AttentionSettings,
    /// The new tokens.
    pub tokens: Tokens<'a, T>,
    /// Key rows of the past tokens of each (sequence, KV head), the head varying fastest.
    pub past_key: &'a [&'a [u8]],
    /// Value rows, likewise.
    pub past_value: &'a [&'a [u8]],
    /// The last past keys, dense, `[B, Hk, Wp, D]`.
    pub recent: Option<ArrayView4<'a, T>>,
    /// Where the last past keys are dense in shared buffers; not read where `recent` is given.
    pub tail: Option<TailRows<'a>>,
    /// Channel scale c, `[Hk * D]`.
    pub scale: &'a [f32],
    /// Added to the scores, `[B or 1, Hq or 1, L, total or more]`.
    pub bias: Option<ArrayView4<'a, T>>,
}

/// The tails of a call's shared buffers, to be read.
#[derive(Clone, Copy, Debug)]
pub struct TailRows<'a> {
    /// Where keys lie in them.
    pub layout: &'a TailLayout,
    /// Free key rows of each (sequence, KV head), from the past length to the end of the buffer.
    pub key: &'a [&'a [u8]],
    /// Free value rows, likewise.
    pub value: &'a [&'a [u8]],
}

impl<T: Element> Attention<'_, T> {
    /// Reads the key row at `position` of the (sequence, KV head) number `head` to `key`, `[D]`.
    #[inline(always)]
    pub(super) fn read_row(&self, head: usize, position: usize, key: &mut [f32]) {
        let (layout, h) = (&self.geometry.key, head % self.geometry.kv_heads);
        let (d, bytes) = (layout.head_dim(), layout.row_bytes());
        let row = &self.past_key[head][position * bytes..(position + 1) * bytes];
        if let Some(planes) = layout.planes() {
            return planes.decode(row, key);
        }
        let (row, recovery) = (layout.row(row), self.settings.common.recovery);
        row.decode(&self.scale[h * d..(h + 1) * d], |channel| recovery.factor(position, channel), key);
    }

    /// Positions of all keys that some of the `queries` may see.
    pub(super) fn keys(&self, queries: &Queries) -> Range<usize> {
        let (past, new) = (self.lengths.past[queries.sequence], self.lengths.new[queries.sequence]);
        let end = past + if self.settings.causal { new.min(queries.tokens.end) } else { new };
        let first_query = past + queries.tokens.start;
        let start = self.settings.window.map_or(0, |w| (first_query + 1).saturating_sub(w));
        start.min(end)..end
    }

    /// Positions of the keys that the query of new token `i` of sequence `b` may see; none if it is padding.
    pub(super) fn seen_by(&self, b: usize, i: usize) -> Range<usize> {
        if i >= self.lengths.new[b] {
            return 0..0;
        }
        let query = self.lengths.past[b] + i;
        let end = if self.settings.causal { query + 1 } else { self.lengths.past[b] + self.lengths.new[b] };
        self.settings.window.map_or(0, |w| (query + 1).saturating_sub(w))..end
    }

    /// Factor of the scores.
    pub(super) fn score_scale(&self) -> f32 {
        self.settings.scale.unwrap_or_else(|| 1.0 / (self.geometry.head_dim() as f32).sqrt())
    }

    /// Whether scores are but scaled products.
    pub(super) fn plain_scores(&self) -> bool {
        self.bias.is_none() && self.settings.softcap.is_none()
    }

    /// The score of a key at position `t` for query head `head` of new token `i`, finite; `None` if it is masked.
    pub(super) fn score(&self, dot: f32, (b, head, i, t): (usize, usize, usize, usize)) -> Option<f32> {
        let limited = |s: f32| s.clamp(f32::MIN, f32::MAX);
        let mut score = limited(dot * self.score_scale());
        if let Some(softcap) = self.settings.softcap {
            score = softcap * (score / softcap).tanh();
        }
        if let Some(bias) = &self.bias {
            let (batches, heads, ..) = bias.dim();
            let bias = bias[(if batches == 1 { 0 } else { b }, if heads == 1 { 0 } else { head }, i, t)].to_f32();
            if bias.is_nan() || bias == f32::NEG_INFINITY {
                return None;
            }
            score = limited(score + bias);
        }
        Some(score)
    }
}
