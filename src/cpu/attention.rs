//! The read path: recovery attention over cached rows, dense attention over the new tokens.

use std::ops::Range;
use std::sync::Mutex;

use ndarray::{ArrayView4, ArrayViewMut, ArrayViewMut3, ArrayViewMut4, Axis, Dimension, RemoveAxis, s};

use super::{Pool, SoftmaxState, Tokens};
use crate::call::{AttentionSettings, Geometry, Lengths};
use crate::element::Element;
use crate::method::Recovery;

/// New tokens whose queries share one reading of the keys.
const TOKENS_PER_BLOCK: usize = 8;
/// Pieces of work that keep any pool busy: with fewer blocks of queries, the keys of each are split.
const MANY_PIECES: usize = 64;
/// Fewest keys worth a piece of their own.
const KEYS_PER_PIECE: usize = 512;

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
    /// Channel scale c, `[Hk * D]`.
    pub scale: &'a [f32],
    /// Added to the scores, `[B or 1, Hq or 1, L, total or more]`.
    pub bias: Option<ArrayView4<'a, T>>,
}

/// Queries of some new tokens of one KV head's group, and where their output goes.
struct Block<'a, T> {
    sequence: usize,
    kv_head: usize,
    tokens: Range<usize>,
    /// `[G, tokens, D]`; locked once for each use, never contended.
    out: Mutex<ArrayViewMut3<'a, T>>,
    /// States of the parts that the keys were split into, in order.
    parts: Vec<Part>,
}

/// Some of the keys that a block sees, by position in the sequence, and what its queries got from them.
struct Part {
    keys: Range<usize>,
    states: Mutex<Vec<SoftmaxState>>,
}

/// Writes the attention output of every query to `out`, `[B, Hq, L, D]`; zero for padding. Memory beside it is
/// proportional to the new tokens, never to the cache.
pub fn attention<T: Element>(pool: &impl Pool, call: &Attention<'_, T>, out: ArrayViewMut4<'_, T>) {
    let new = NewTokens::read(pool, call);
    let blocks = call.blocks(out);
    let parts: Vec<_> = (0..blocks.len()).flat_map(|b| (0..blocks[b].parts.len()).map(move |p| (b, p))).collect();
    pool.par_for(parts.len(), &|n| {
        let (block, part) = (&blocks[parts[n].0], &blocks[parts[n].0].parts[parts[n].1]);
        let states = call.attend(&new, block, part.keys.clone());
        if block.parts.len() == 1 {
            block.write(&states);
        } else {
            *part.states.lock().unwrap() = states;
        }
    });
    let split: Vec<_> = blocks.iter().filter(|b| b.parts.len() > 1).collect();
    pool.par_for(split.len(), &|n| {
        let mut parts = split[n].parts.iter().map(|p| p.states.lock().unwrap());
        let mut states = std::mem::take(&mut *parts.next().unwrap());
        for part in parts {
            states.iter_mut().zip(part.iter()).for_each(|(s, p)| s.merge(p));
        }
        split[n].write(&states);
    });
}

/// Rotated keys, and values, of the new tokens of a call, in float32.
struct NewTokens {
    head_dim: usize,
    /// Keys and values of each (sequence, KV head), the head varying fastest, `[L, D]` each.
    heads: Vec<(Vec<f32>, Vec<f32>)>,
}

impl NewTokens {
    fn read<T: Element>(pool: &impl Pool, call: &Attention<'_, T>) -> Self {
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
    fn row(&self, head: usize, i: usize) -> (&[f32], &[f32]) {
        let (key, value) = &self.heads[head];
        let at = i * self.head_dim..(i + 1) * self.head_dim;
        (&key[at.clone()], &value[at])
    }
}

/// `view` in pieces of `size` along `axis`, the last one shorter.
fn split<'a, T, D: Dimension>(
    mut view: ArrayViewMut<'a, T, D>,
    axis: Axis,
    size: usize,
) -> Vec<ArrayViewMut<'a, T, D>> {
    let mut pieces = Vec::new();
    while view.len_of(axis) > size {
        let (piece, rest) = view.split_at(axis, size);
        pieces.push(piece);
        view = rest;
    }
    if view.len_of(axis) > 0 {
        pieces.push(view);
    }
    pieces
}

/// The entries of `view` along its first axis.
fn entries<'a, T, D: RemoveAxis>(
    view: ArrayViewMut<'a, T, D>,
) -> impl Iterator<Item = ArrayViewMut<'a, T, D::Smaller>> {
    split(view, Axis(0), 1).into_iter().map(|v| v.index_axis_move(Axis(0), 0))
}

impl<T: Element> Block<'_, T> {
    /// Writes the finished `states`, in the order of the output's first two axes.
    fn write(&self, states: &[SoftmaxState]) {
        let mut out = self.out.lock().unwrap();
        for (mut row, state) in out.lanes_mut(Axis(2)).into_iter().zip(states) {
            row.iter_mut().zip(state.finish()).for_each(|(o, x)| *o = T::from_f32(x));
        }
    }
}

impl<T: Element> Attention<'_, T> {
    /// All queries in blocks, with the keys each block sees. Depends on the call only, so results do not depend on the pool.
    fn blocks<'o>(&self, out: ArrayViewMut4<'o, T>) -> Vec<Block<'o, T>> {
        let mut blocks = Vec::new();
        for (b, sequence) in entries(out).enumerate() {
            for (h, group) in split(sequence, Axis(0), self.geometry.group()).into_iter().enumerate() {
                for (n, out) in split(group, Axis(1), TOKENS_PER_BLOCK).into_iter().enumerate() {
                    let first = n * TOKENS_PER_BLOCK;
                    let tokens = first..first + out.len_of(Axis(1));
                    blocks.push(Block { sequence: b, kv_head: h, tokens, out: Mutex::new(out), parts: Vec::new() });
                }
            }
        }
        let most_parts = MANY_PIECES.div_ceil(blocks.len().max(1));
        for block in &mut blocks {
            let keys = self.keys(block);
            let size = KEYS_PER_PIECE.max(keys.len().div_ceil(most_parts));
            // A block that sees nothing still has a part: its output is to be zeroed.
            let parts = 0..keys.len().div_ceil(size).max(1);
            let part = |n| keys.start + n * size..keys.end.min(keys.start + (n + 1) * size);
            block.parts = parts.map(|n| Part { keys: part(n), states: Mutex::default() }).collect();
        }
        blocks
    }

    /// Positions of all keys that some query of `block` may see.
    fn keys(&self, block: &Block<'_, T>) -> Range<usize> {
        let (past, new) = (self.lengths.past[block.sequence], self.lengths.new[block.sequence]);
        let end = past + if self.settings.causal { new.min(block.tokens.end) } else { new };
        let first_query = past + block.tokens.start;
        let start = self.settings.window.map_or(0, |w| (first_query + 1).saturating_sub(w));
        start.min(end)..end
    }

    /// Whether the query at position `query` may see the key at position `key`.
    fn sees(&self, query: usize, key: usize) -> bool {
        (key <= query || !self.settings.causal) && self.settings.window.is_none_or(|w| key.saturating_add(w) > query)
    }

    /// What the queries of `block` get from `keys`, in the order of the block's output.
    fn attend(&self, new: &NewTokens, block: &Block<'_, T>, keys: Range<usize>) -> Vec<SoftmaxState> {
        let (b, h) = (block.sequence, block.kv_head);
        let (d, group) = (self.geometry.head_dim(), self.geometry.group());
        let head = b * self.geometry.kv_heads + h;
        let past = self.lengths.past[b];
        let queries: Vec<_> = (0..group).flat_map(|g| block.tokens.clone().map(move |i| (h * group + g, i))).collect();
        let mut query = vec![0.0; queries.len() * d];
        for (q, &(head, i)) in query.chunks_exact_mut(d).zip(&queries) {
            self.tokens.query(b, head, i, q);
        }
        let mut states = vec![SoftmaxState::new(d); queries.len()];
        let (mut cached_key, mut cached_value) = (vec![0.0; d], vec![0.0; d]);
        for t in keys {
            let (key, value) = if t < past {
                self.cached(head, t, &mut cached_key, &mut cached_value);
                (&cached_key[..], &cached_value[..])
            } else {
                new.row(head, t - past)
            };
            for ((q, state), &(head, i)) in query.chunks_exact(d).zip(&mut states).zip(&queries) {
                if i < self.lengths.new[b] && self.sees(past + i, t) {
                    let dot = q.iter().zip(key).map(|(q, k)| q * k).sum();
                    if let Some(score) = self.score(dot, (b, head, i, t)) {
                        state.push(score, value);
                    }
                }
            }
        }
        states
    }

    /// Key and value of the past token at position `t`, as far as the cache knows them.
    fn cached(&self, head: usize, t: usize, key: &mut [f32], value: &mut [f32]) {
        let Geometry { kv_heads, key: key_layout, value: value_layout, .. } = self.geometry;
        let (b, h) = (head / kv_heads, head % kv_heads);
        let row = |bytes: usize| t * bytes..(t + 1) * bytes;
        value_layout.decode(&self.past_value[head][row(value_layout.row_bytes())], value);
        let first_recent = self.lengths.past[b] - self.lengths.recent_before(b, self.settings.common.recent_window);
        match &self.recent {
            Some(recent) if t >= first_recent => {
                key.iter_mut().zip(recent.slice(s![b, h, t - first_recent, ..])).for_each(|(k, r)| *k = r.finite());
            }
            _ => {
                let scale = &self.scale[h * key.len()..(h + 1) * key.len()];
                let recover = self.settings.common.recovery == Recovery::Mean;
                key_layout.row(&self.past_key[head][row(key_layout.row_bytes())]).decode(scale, recover, key);
            }
        }
    }

    /// The score of a key at position `t` for query head `head` of new token `i`, finite; `None` if it is masked.
    fn score(&self, dot: f32, (b, head, i, t): (usize, usize, usize, usize)) -> Option<f32> {
        let scale = self.settings.scale.unwrap_or_else(|| 1.0 / (self.geometry.head_dim() as f32).sqrt());
        let limited = |s: f32| s.clamp(f32::MIN, f32::MAX);
        let mut score = limited(dot * scale);
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
