//! A few queries: rows are read as they are stored, once for up to eight queries.

use std::ops::Range;

use super::ahead::Ahead;
use super::keys::KeyReader;
use super::stored::{self, StoredKeys, put};
use super::values::{Sums, add_dense, add_rows, in_order};
use super::{Block, Fast, Place, scores, whole};
use crate::cpu::SoftmaxState;
use crate::cpu::vector::{LANES, Vector, Work};
use crate::element::Element;
use crate::format::MAX_HEAD_DIM;

/// Most blocks of channels.
const MOST_BLOCKS: usize = MAX_HEAD_DIM / LANES;

/// Keys whose scores are found before their values are added.
pub(super) const CHUNK: usize = 128;

/// A number for each key of a chunk and each of `H` queries: products, then weights.
pub(super) type ByKey<const H: usize> = [[[f32; LANES]; CHUNK / LANES]; H];

/// What the queries of `block` get from the keys at positions `keys`.
pub(super) fn attend<T: Element, V: Vector>(
    fast: &Fast<'_, '_, T, V>,
    block: &Block,
    keys: Range<usize>,
) -> Vec<SoftmaxState> {
    let mut states = Vec::with_capacity(block.items.len());
    while states.len() < block.items.len() {
        let first = states.len();
        let keys = keys.clone();
        // SAFETY: a path is only taken on processors that have its instructions.
        states.extend(unsafe {
            // A query or two that there are not cost less than to read rows again.
            match block.items.len() - first {
                6.. => V::run(Some::<_, _, 8> { fast, block, first, keys }),
                3.. => V::run(Some::<_, _, 4> { fast, block, first, keys }),
                2.. => V::run(Some::<_, _, 2> { fast, block, first, keys }),
                _ => V::run(Some::<_, _, 1> { fast, block, first, keys }),
            }
        });
    }
    states
}

/// Up to `H` queries from number `first` on.
struct Some<'s, 'a, 'c, T, P, const H: usize> {
    fast: &'s Fast<'a, 'c, T, P>,
    block: &'s Block,
    first: usize,
    keys: Range<usize>,
}

impl<T: Element, P: Vector, const H: usize> Work for Some<'_, '_, '_, T, P, H> {
    type Output = Vec<SoftmaxState>;

    #[inline(always)]
    unsafe fn with<V: Vector>(self) -> Vec<SoftmaxState> {
        // SAFETY: by the trait's contract.
        unsafe { some::<T, V, P, H>(self.fast, self.block, self.first, self.keys) }
    }
}

/// What up to `H` queries from number `first` on get from the keys at positions `keys`.
#[inline(always)]
unsafe fn some<T: Element, V: Vector, P: Vector, const H: usize>(
    fast: &Fast<'_, '_, T, P>,
    block: &Block,
    first: usize,
    keys: Range<usize>,
) -> Vec<SoftmaxState> {
    let call = fast.call;
    let d = call.geometry.head_dim();
    let blocks = d / LANES;
    let items = &block.items[first..block.items.len().min(first + H)];
    let (key_layout, value_layout) = (&call.geometry.key, &call.geometry.value);
    let reader = KeyReader::new(key_layout, fast.recovers());
    let scale = call.scale[block.scale.clone()].as_chunks::<LANES>().0;
    // On the stack, as all that is needed here: allocating takes as long as reading many rows.
    let (mut queries, mut for_rows, mut sums) =
        ([Sums::NONE; MOST_BLOCKS], [Sums::NONE; MOST_BLOCKS], [Sums::NONE; MOST_BLOCKS]);
    let (queries, for_rows, sums) = (&mut queries[..blocks], &mut for_rows[..blocks], &mut sums[..blocks]);
    for (h, query) in block.queries[first * d..].chunks_exact(d).enumerate().take(H) {
        for (n, channels) in query.as_chunks::<LANES>().0.iter().enumerate() {
            queries[n].0[h] = *channels;
            // q~ = q * c, for rows in units of c.
            for_rows[n].0[h] =
                if reader.in_units() { std::array::from_fn(|j| channels[j] * scale[n][j]) } else { *channels };
        }
    }
    let (mut for_keys, mut for_weights) = (stored::Scratch::NONE, whole::Scaled::<H>::NONE);
    // SAFETY: as the caller.
    let mut stored_keys = unsafe { StoredKeys::<V, H>::new(reader, for_rows, scale, &mut for_keys) };
    let whole_values = V::WHOLE && whole::takes_values(value_layout);
    let mut max = [f32::NEG_INFINITY; H];
    let mut sum = [0.0; H];
    let mut by_parity = true;
    let (past_key, past_value) = (call.past_key[block.head], call.past_value[block.head]);
    let past = call.lengths.past[block.sequence];
    for (place, positions) in fast.pieces(block.head, keys, CHUNK) {
        let count = positions.len();
        let mut products = [[[0.0; LANES]; CHUNK / LANES]; H];
        let (key_bytes, value_bytes) = (key_layout.row_bytes(), value_layout.row_bytes());
        let (stored, first) = (matches!(place, Place::Rows | Place::Recent), positions.start);
        let key_rows = if stored { &past_key[first * key_bytes..] } else { &[] };
        let value_rows = if stored { &past_value[first * value_bytes..] } else { &[] };
        let new = match place {
            Place::New => fast.new.rows(block.head, positions.start - past, positions.end - past),
            _ => Default::default(),
        };
        let ahead = &Ahead::new((key_rows, key_bytes), (value_rows, value_bytes));
        // SAFETY: as the caller.
        unsafe {
            match place {
                Place::Rows => stored_keys.products(key_rows, count, ahead, &mut products),
                Place::Recent => dense::<V, H>(&fast.recent(block, positions.clone()), queries, &mut products),
                Place::New => dense::<V, H>(new[0].as_slice().expect("contiguous"), queries, &mut products),
            }
            let used = count.div_ceil(LANES);
            for (h, &(head, token)) in items.iter().enumerate() {
                let products = &mut products[h][..used];
                let query = (block.sequence, head, token);
                let state = (&mut max[h], &mut sum[h]);
                let rescale = scores::to_weights::<T, V>(call, query, positions.clone(), products, state);
                if rescale != 1.0 {
                    for sums in &mut *sums {
                        V::store(V::mul(V::load(&sums.0[h]), V::splat(rescale)), &mut sums.0[h]);
                    }
                }
            }
            match place {
                Place::New => {
                    if std::mem::take(&mut by_parity) {
                        in_order(value_layout, sums);
                    }
                    add_dense::<V, H>(new[1].as_slice().expect("contiguous"), count, &products, sums);
                }
                _ => {
                    let rows = (&value_rows[..count * value_bytes], count);
                    if whole_values {
                        whole::add_rows(value_layout, rows, ahead, &products, &mut for_weights, sums);
                    } else {
                        add_rows::<V, H>(value_layout, rows, ahead, &products, sums);
                    }
                }
            }
        }
    }
    if by_parity {
        in_order(value_layout, sums);
    }
    let weighted = |h: usize| sums.iter().flat_map(|sums| sums.0[h]).collect();
    (0..items.len()).map(|h| SoftmaxState::of(max[h], sum[h], weighted(h))).collect()
}

/// Products of dense `keys`, `[keys, D]`, with the queries.
#[inline(always)]
unsafe fn dense<V: Vector, const H: usize>(keys: &[f32], queries: &[Sums<H>], products: &mut ByKey<H>) {
    for (key, row) in keys.chunks_exact(queries.len() * LANES).enumerate() {
        // SAFETY: as the caller.
        let lanes = unsafe {
            let mut lanes = [V::splat(0.0); H];
            for (x, query) in row.as_chunks::<LANES>().0.iter().zip(queries) {
                let x = V::load(x);
                for (lanes, query) in lanes.iter_mut().zip(&query.0) {
                    *lanes = V::mul_add(x, V::load(query), *lanes);
                }
            }
            V::sums(lanes)
        };
        put(products, key, lanes);
    }
}
