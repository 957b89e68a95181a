//! The write path: saliency, choice of channels, rows.

use std::sync::Mutex;

use ndarray::{ArrayView4, ArrayViewMut3, ArrayViewMut4, s};

use super::isa::InstructionSet;
use super::isa::traits::{Isa, Work};
use super::pool::Pool;
use super::tokens::Tokens;
use crate::call::{Geometry, Lengths, PruneSettings};
use crate::element::Element;
use crate::format::{KeyLayout, MAX_HEAD_DIM, PrunedKey};
use crate::method::{MIN_OBSERVED, Recovery, Saliency, recovery_magnitude, select};

/// New tokens that one piece of work encodes.
const TOKENS_PER_PIECE: usize = 64;

/// One call of the write path.
#[derive(Clone, Copy, Debug)]
pub struct Prune<'a, T> {
    /// Sizes.
    pub geometry: &'a Geometry,
    /// Lengths of the sequences.
    pub lengths: &'a Lengths,
    /// Attributes.
    pub settings: &'a PruneSettings,
    /// The new tokens.
    pub tokens: Tokens<'a, T>,
    /// The model's typical n, `[Hk * D]`; ones if absent.
    pub query_saliency: Option<&'a [f32]>,
    /// Channel scale c, `[Hk * D]`.
    pub scale: &'a [f32],
}

/// Where the rows of one (sequence, KV head) go: exactly its valid new tokens.
#[derive(Debug)]
pub struct HeadRows<'a> {
    /// Key rows, one after the other.
    pub key: &'a mut [u8],
    /// Value rows, one after the other.
    pub value: &'a mut [u8],
}

/// See [`super::prune`].
pub(super) fn prune<T: Element>(
    pool: &dyn Pool,
    set: InstructionSet,
    call: &Prune<'_, T>,
    rows: Vec<HeadRows<'_>>,
    observed: Option<ArrayViewMut3<'_, f32>>,
) {
    let Geometry { kv_heads, key, value, .. } = *call.geometry;
    assert_eq!(rows.len(), call.geometry.batch * kv_heads);
    let saliency = saliencies(pool, call, observed);

    let mut pieces = Vec::new();
    for (head, rows) in rows.into_iter().enumerate() {
        assert_eq!(rows.key.len(), call.lengths.new[head / kv_heads] * key.row_bytes());
        let key = rows.key.chunks_mut(TOKENS_PER_PIECE * key.row_bytes());
        let value = rows.value.chunks_mut(TOKENS_PER_PIECE * value.row_bytes());
        pieces.extend(
            key.zip(value)
                .enumerate()
                .map(|(n, (key, value))| Mutex::new(Piece { head, first: n * TOKENS_PER_PIECE, key, value })),
        );
    }
    // Each piece is locked once, by the thread that works on it.
    pool.par_for(pieces.len(), &|n| {
        let piece = &mut *pieces[n].lock().unwrap();
        set.run(Encode { call, saliency: &saliency[piece.head], piece });
    });
}

/// Some new tokens of one (sequence, KV head), from number `first` on, and where their rows go.
struct Piece<'a> {
    head: usize,
    first: usize,
    key: &'a mut [u8],
    value: &'a mut [u8],
}

/// A piece to be encoded.
struct Encode<'s, 'a, 'c, T> {
    call: &'s Prune<'c, T>,
    saliency: &'s [f32],
    piece: &'s mut Piece<'a>,
}

impl<T: Element> Work for Encode<'_, '_, '_, T> {
    type Output = ();

    #[inline(always)]
    fn with<I: Isa>(self, _: I) {
        let Self { call, saliency, piece } = self;
        let Geometry { kv_heads, key, value, .. } = call.geometry;
        let (b, h) = (piece.head / kv_heads, piece.head % kv_heads);
        let d = call.geometry.head_dim();
        let scale = &call.scale[h * d..(h + 1) * d];
        let mut buffer = [0.0; MAX_HEAD_DIM];
        let x = &mut buffer[..d];
        let rows = piece.key.chunks_exact_mut(key.row_bytes()).zip(piece.value.chunks_exact_mut(value.row_bytes()));
        for (i, (key_row, value_row)) in (piece.first..).zip(rows) {
            call.tokens.key(b, h, i, x);
            encode_key(key, call.settings.common.recovery, x, saliency, scale, key_row);
            call.tokens.value(b, h, i, x);
            value.encode(x, value_row);
        }
    }
}

/// n by which each (sequence, KV head) is pruned: its own, or the model's when it has few new tokens, and in a basis.
fn saliencies<T: Element>(
    pool: &dyn Pool,
    call: &Prune<'_, T>,
    observed: Option<ArrayViewMut3<'_, f32>>,
) -> Vec<Vec<f32>> {
    let Geometry { batch, kv_heads, .. } = *call.geometry;
    let d = call.geometry.head_dim();
    let in_basis = call.geometry.key.planes().is_some();
    let too_few = |b: usize| in_basis || call.lengths.new[b] < MIN_OBSERVED;
    let wanted = observed.is_some();
    let own: Vec<_> = (0..batch * kv_heads).map(|_| Mutex::new(Vec::new())).collect();
    if wanted || !(0..batch).all(too_few) {
        pool.par_for(own.len(), &|head| {
            *own[head].lock().unwrap() = observe(call, head / kv_heads, head % kv_heads);
        });
    }
    let own: Vec<_> = own.into_iter().map(|n| n.into_inner().unwrap()).collect();
    if let Some(mut observed) = observed {
        for (head, n) in own.iter().enumerate() {
            let mut row = observed.slice_mut(s![head / kv_heads, head % kv_heads, ..]);
            row.iter_mut().zip(n).for_each(|(o, n)| *o = *n);
        }
    }
    let typical = |h: usize| call.query_saliency.map_or(vec![1.0; d], |n| n[h * d..(h + 1) * d].to_vec());
    own.into_iter()
        .enumerate()
        .map(|(head, n)| if too_few(head / kv_heads) { typical(head % kv_heads) } else { n })
        .collect()
}

/// n of sequence `b` and KV head `h` over the last W valid queries of the call.
fn observe<T: Element>(call: &Prune<'_, T>, b: usize, h: usize) -> Vec<f32> {
    let group = call.geometry.group();
    let new = call.lengths.new[b];
    let tokens = call.tokens.without_basis();
    let mut query = vec![0.0; call.geometry.head_dim()];
    let mut saliency = Saliency::new(query.len());
    for w in new.saturating_sub(call.settings.observation_window)..new {
        for g in 0..group {
            tokens.query(b, h * group + g, w, &mut query);
            saliency.add_head(&query);
        }
        saliency.end_token(group);
    }
    saliency.finish()
}

/// Encodes `key` into `row`, with the channels that `saliency` chooses, or in planes with the scale that it does. All
/// but `row` have one number a channel, `scale` is c.
///
/// # Panics
/// If a length is not what the layout says.
#[inline(always)]
pub fn encode_key(
    layout: &KeyLayout,
    recovery: Recovery,
    key: &[f32],
    saliency: &[f32],
    scale: &[f32],
    row: &mut [u8],
) {
    if let Some(planes) = layout.planes() {
        assert_eq!((key.len(), row.len()), (layout.head_dim(), layout.row_bytes()));
        return planes.encode(key, saliency, row);
    }
    let mut mask = [0; MAX_HEAD_DIM / 8];
    let mask = &mut mask[..key.len() / 8];
    select(key, saliency, layout.kept(), mask);
    let recovery = match recovery {
        Recovery::None => 0.0,
        Recovery::Mean | Recovery::Exponential | Recovery::Normal => recovery_magnitude(key, scale, mask),
    };
    layout.encode(PrunedKey { key, mask, scale, recovery }, row);
}

/// Writes the last keys of every sequence after this call, dense, to `present` (`[B, Hk, W', D]`, W' at least the
/// largest number of recent keys); `past` (`[B, Hk, Wp, D]`) holds those before it. Rows without a key are zero.
///
/// # Panics
/// If a past key is needed and `past` does not hold it.
pub fn recent_keys<T: Element>(
    pool: &dyn Pool,
    call: &Prune<'_, T>,
    past: Option<ArrayView4<'_, T>>,
    mut present: ArrayViewMut4<'_, T>,
) {
    let Geometry { kv_heads, .. } = *call.geometry;
    let window = call.settings.common.recent_window;
    let heads: Vec<_> = present.outer_iter_mut().flat_map(|s| s.into_outer_iter_mut()).map(Mutex::new).collect();
    pool.par_for(heads.len(), &|head| {
        let (b, h) = (head / kv_heads, head % kv_heads);
        let (before, after) = (call.lengths.recent_before(b, window), call.lengths.recent_after(b, window));
        let past_b = call.lengths.past[b];
        let total = past_b + call.lengths.new[b];
        let mut key = vec![0.0; call.geometry.head_dim()];
        for (i, mut row) in heads[head].lock().unwrap().outer_iter_mut().enumerate() {
            let position = total - after + i;
            if i >= after {
                row.fill(T::default());
            } else if position >= past_b {
                call.tokens.key(b, h, position - past_b, &mut key);
                row.iter_mut().zip(&key).for_each(|(r, k)| *r = T::from_f32(*k));
            } else {
                let past = past.as_ref().expect("recent keys of past tokens are given");
                let past = past.slice(s![b, h, position - (past_b - before), ..]);
                row.iter_mut().zip(past).for_each(|(r, p)| *r = T::from_f32(p.finite()));
            }
        }
    });
}
