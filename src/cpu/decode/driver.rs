//! The decode driver. A few queries: rows are read as they are stored, once for up to eight queries.

use std::ops::Range;

use super::chunk::{ByKey, CHUNK, HeadLanes, no_products, set_products};
use super::kernels::ValueKernel;
use super::key_kernels::{KeyProducts, KeyScratch};
use super::prefetch::Prefetch;
use super::scores::to_weights;
use crate::cpu::isa::rows::values::{add_dense, add_rows, finish_rows};
use crate::cpu::isa::traits::{Isa, Work};
use crate::cpu::isa::vector::{LANES, Vector};
use crate::cpu::kv_source::{KvSource, Place};
use crate::cpu::query_block::QueryBlock;
use crate::cpu::softmax::SoftmaxState;
use crate::element::Element;
use crate::format::v1::layout::{MAX_HEAD_DIM, ValueLayout};

/// Keys that are read one by one before they are multiplied.
const KEYS_AT_ONCE: usize = 16;

/// Most blocks of channels.
const MOST_BLOCKS: usize = MAX_HEAD_DIM / LANES;

/// What the `queries` of `block`, `[items, D]`, get from the keys at positions `keys`.
pub(in crate::cpu) fn attend<T: Element, I: Isa>(
    isa: I,
    source: &KvSource<'_, '_, T>,
    block: &QueryBlock,
    queries: &[f32],
    keys: Range<usize>,
) -> Vec<SoftmaxState> {
    let mut states = Vec::with_capacity(block.items.len());
    while states.len() < block.items.len() {
        let first = states.len();
        let keys = keys.clone();
        // Padding the batch with a dummy query is cheaper than reading the rows twice.
        states.extend(match block.items.len() - first {
            5.. => isa.run(DecodeBatch::<_, 8> { source, block, queries, first, keys }),
            3.. => isa.run(DecodeBatch::<_, 4> { source, block, queries, first, keys }),
            2.. => isa.run(DecodeBatch::<_, 2> { source, block, queries, first, keys }),
            _ => isa.run(DecodeBatch::<_, 1> { source, block, queries, first, keys }),
        });
    }
    states
}

/// Up to `H` queries of a block, from number `first` on, and the positions of their keys.
struct DecodeBatch<'s, 'a, 'c, T, const H: usize> {
    source: &'s KvSource<'a, 'c, T>,
    block: &'s QueryBlock,
    /// All queries of the block, `[items, D]`.
    queries: &'s [f32],
    first: usize,
    keys: Range<usize>,
}

impl<T: Element, const H: usize> Work for DecodeBatch<'_, '_, '_, T, H> {
    type Output = Vec<SoftmaxState>;

    #[inline(always)]
    fn with<I: Isa>(self, isa: I) -> Vec<SoftmaxState> {
        decode_batch(isa, self)
    }
}

/// What the queries of `batch` get from its keys.
#[inline(always)]
fn decode_batch<T: Element, I: Isa, const H: usize>(isa: I, batch: DecodeBatch<'_, '_, '_, T, H>) -> Vec<SoftmaxState> {
    let DecodeBatch { source, block, queries: all_queries, first, keys } = batch;
    let v = isa.vector();
    let call = source.call;
    let d = call.geometry.head_dim();
    let blocks = d / LANES;
    let items = &block.items[first..block.items.len().min(first + H)];
    let (key_layout, value_layout) = (&call.geometry.key, &call.geometry.value);
    let scale = call.scale[block.scale.clone()].as_chunks::<LANES>().0;
    // On the stack, like all scratch space here: allocating takes as long as reading many rows.
    let (mut queries, mut for_rows, mut sums) =
        ([HeadLanes::ZERO; MOST_BLOCKS], [HeadLanes::ZERO; MOST_BLOCKS], [HeadLanes::ZERO; MOST_BLOCKS]);
    let (queries, for_rows, sums) = (&mut queries[..blocks], &mut for_rows[..blocks], &mut sums[..blocks]);
    let scale_of_rows = source.key_rows().in_units().then_some(scale);
    by_blocks(&all_queries[first * d..], scale_of_rows, queries, for_rows);
    let mut key_scratch = KeyScratch::<I, H>::new();
    let mut key_products = KeyProducts::<I, H>::new(isa, source.key_rows(), for_rows, scale, &mut key_scratch);
    let value_kernel = I::Values::<H>::new(isa, value_layout);
    let mut value_scratch = <I::Values<H> as ValueKernel<H>>::Scratch::default();
    let (mut max, mut sum) = ([f32::NEG_INFINITY; H], [0.0; H]);
    let (mut unfinished, mut products) = (true, no_products::<H>());
    let (past_key, past_value) = (call.past_key[block.head], call.past_value[block.head]);
    let past = call.lengths.past[block.sequence];
    for (place, positions) in source.pieces(block.head, keys, CHUNK) {
        let count = positions.len();
        if count < CHUNK {
            products = no_products(); // Of a whole chunk all are set.
        }
        let (key_bytes, value_bytes) = (key_layout.row_bytes(), value_layout.row_bytes());
        let (stored, first) = (matches!(place, Place::Rows | Place::OneByOne), positions.start);
        let key_rows = if stored { &past_key[first * key_bytes..] } else { &[] };
        let value_rows = if stored { &past_value[first * value_bytes..] } else { &[] };
        let new = match place {
            Place::New => source.new.rows(block.head, positions.start - past, positions.end - past),
            _ => Default::default(),
        };
        let prefetch = &Prefetch::new((key_rows, key_bytes), (value_rows, value_bytes), key_layout.planes().is_some());
        match place {
            Place::Rows => key_products.products(key_rows, count, prefetch, &mut products),
            Place::OneByOne => one_by_one(v, source, block, positions.clone(), queries, &mut products),
            Place::New => dense(v, new[0].as_slice().expect("contiguous"), 0, queries, &mut products),
        }
        let used = count.div_ceil(LANES);
        for (h, &(head, token)) in items.iter().enumerate() {
            let products = &mut products[h][..used];
            let query = (block.sequence, head, token);
            let state = (&mut max[h], &mut sum[h]);
            let rescale = to_weights(v, call, query, positions.clone(), products, state);
            if rescale != 1.0 {
                for sums in &mut *sums {
                    v.store(v.mul(v.load(&sums.0[h]), v.splat(rescale)), &mut sums.0[h]);
                }
            }
        }
        match place {
            Place::New => {
                if std::mem::take(&mut unfinished) {
                    finish_rows(value_layout, sums);
                }
                add_dense(v, new[1].as_slice().expect("contiguous"), count, &products, sums);
            }
            _ => {
                let rows = (&value_rows[..count * value_bytes], count);
                match &value_kernel {
                    Some(kernel) => {
                        let of_items = (&products, items.len());
                        kernel.add_rows(value_layout, rows, prefetch, of_items, &mut value_scratch, sums);
                    }
                    None => isa.run(AddRows { layout: value_layout, rows, prefetch, weights: &products, sums }),
                }
            }
        }
    }
    if unfinished {
        finish_rows(value_layout, sums);
    }
    let weighted = |h: usize| sums.iter().map(|sums| sums.0[h]).collect::<Vec<_>>().into_flattened();
    (0..items.len()).map(|h| SoftmaxState::of(max[h], sum[h], weighted(h))).collect()
}

/// Value rows, and how many they are, to be added to `sums`. Work of its own, so that it is compiled once for all types
/// of a call.
struct AddRows<'s, const H: usize> {
    layout: &'s ValueLayout,
    rows: (&'s [u8], usize),
    prefetch: &'s Prefetch<'s>,
    weights: &'s ByKey<H>,
    sums: &'s mut [HeadLanes<H>],
}

impl<const H: usize> Work for AddRows<'_, H> {
    type Output = ();

    #[inline(always)]
    fn with<I: Isa>(self, isa: I) {
        add_rows(isa.vector(), self.layout, self.rows, self.prefetch, self.weights, self.sums);
    }
}

/// Puts the first `H` of `from`, `[queries, D]`, block by block into `queries`, and into `for_rows` as key rows are
/// multiplied with them: times `scale`, c, where rows are in units of it.
#[inline(always)]
fn by_blocks<const H: usize>(
    from: &[f32],
    scale: Option<&[[f32; LANES]]>,
    queries: &mut [HeadLanes<H>],
    for_rows: &mut [HeadLanes<H>],
) {
    for (h, query) in from.chunks_exact(queries.len() * LANES).enumerate().take(H) {
        for (n, channels) in query.as_chunks::<LANES>().0.iter().enumerate() {
            queries[n].0[h] = *channels;
            for_rows[n].0[h] = match scale {
                Some(scale) => std::array::from_fn(|j| channels[j] * scale[n][j]),
                None => *channels,
            };
        }
    }
}

/// Products of the keys at `positions`, which are read one by one, with the queries.
#[inline(always)]
fn one_by_one<T: Element, V: Vector, const H: usize>(
    v: V,
    source: &KvSource<'_, '_, T>,
    block: &QueryBlock,
    positions: Range<usize>,
    queries: &[HeadLanes<H>],
    products: &mut ByKey<H>,
) {
    let d = queries.len() * LANES;
    // So few that they stay in the nearest cache.
    let mut keys = [0.0; KEYS_AT_ONCE * MAX_HEAD_DIM];
    for first in positions.clone().step_by(KEYS_AT_ONCE) {
        let some = first..positions.end.min(first + KEYS_AT_ONCE);
        let keys = &mut keys[..some.len() * d];
        source.one_by_one(v, block, some, keys);
        dense(v, keys, first - positions.start, queries, products);
    }
}

/// Products of dense `keys`, `[keys, D]`, with the queries; the first of them is number `from` of the chunk.
#[inline(always)]
fn dense<V: Vector, const H: usize>(
    v: V,
    keys: &[f32],
    from: usize,
    queries: &[HeadLanes<H>],
    products: &mut ByKey<H>,
) {
    for (key, row) in keys.chunks_exact(queries.len() * LANES).enumerate() {
        let lanes = {
            let mut lanes = [v.splat(0.0); H];
            for (x, query) in row.as_chunks::<LANES>().0.iter().zip(queries) {
                let x = v.load(x);
                for (lanes, query) in lanes.iter_mut().zip(&query.0) {
                    *lanes = v.mul_add(x, v.load(query), *lanes);
                }
            }
            v.sums(lanes)
        };
        set_products(products, from + key, lanes);
    }
}
