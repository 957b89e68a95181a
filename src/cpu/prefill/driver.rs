//! Many queries: tiles of keys and values in float32, multiplied with a few vectors of queries after the other.

use std::ops::Range;
use std::sync::Mutex;

use super::gemm::{Panel, add_columns, multiply_rows};
use super::tile::Tile;
use super::tile_softmax::TileSoftmax;
use crate::cpu::attention::Attention;
use crate::cpu::isa::traits::{Isa, Work};
use crate::cpu::isa::vector::{LANES, Vector};
use crate::cpu::kv_source::KvSource;
use crate::cpu::query_block::QueryBlock;
use crate::cpu::softmax::SoftmaxState;
use crate::element::Element;
use crate::format::v1::layout::MAX_HEAD_DIM;

/// Keys of a tile: the weights of a few queries and a few channels of the values stay in the nearest cache, all else in
/// the next one.
const TILE: usize = 128;

/// Scratch memory, reused from block to block: freed in between, it would go back to the system each time.
#[derive(Default)]
struct Scratch {
    tile: Tile,
    /// Products of a tile's keys with some queries, then weights.
    products: Vec<[f32; LANES]>,
    /// `[D, queries]` of some queries after the other.
    queries: Vec<[f32; LANES]>,
    /// Weighted sums of values, `[queries, D]`.
    weighted: Vec<[f32; LANES]>,
}

/// Scratch memory that no block uses at the moment.
#[derive(Default)]
pub(in crate::cpu) struct ScratchPool(Mutex<Vec<Scratch>>);

/// What the queries of `block` get from the keys at positions `keys`.
pub(in crate::cpu) fn attend<T: Element, I: Isa>(
    isa: I,
    source: &KvSource<'_, '_, T>,
    pool: &ScratchPool,
    block: &QueryBlock,
    keys: Range<usize>,
) -> Vec<SoftmaxState> {
    let mut scratch = pool.0.lock().unwrap().pop().unwrap_or_default();
    // As many sums as there are registers for, yet more than an addition takes cycles.
    let states = match <I::Vector as Vector>::REGISTERS {
        1 => by_panels::<T, I, 8, 2>(isa, source, block, keys, &mut scratch),
        2 => by_panels::<T, I, 4, 1>(isa, source, block, keys, &mut scratch),
        _ => by_panels::<T, I, 2, 1>(isa, source, block, keys, &mut scratch),
    };
    pool.0.lock().unwrap().push(scratch);
    states
}

/// The same, `N` vectors of queries at a time, with `R` keys or `R` of the queries at once.
fn by_panels<T: Element, I: Isa, const R: usize, const N: usize>(
    isa: I,
    source: &KvSource<'_, '_, T>,
    block: &QueryBlock,
    keys: Range<usize>,
    scratch: &mut Scratch,
) -> Vec<SoftmaxState> {
    let d = source.call.geometry.head_dim();
    let Scratch { tile, products, queries, weighted } = scratch;
    let panels = block.items.len().div_ceil(N * LANES);
    products.resize((TILE + R) * N, [0.0; LANES]);
    for all in [&mut *queries, &mut *weighted] {
        all.clear();
        all.resize(panels * N * d, [0.0; LANES]);
    }
    let products = products.as_chunks_mut::<N>().0;
    let queries = queries.as_chunks_mut::<N>().0;
    for (items, queries) in block.items.chunks(N * LANES).zip(queries.chunks_exact_mut(d)) {
        isa.run(Transpose { call: source.call, b: block.sequence, items, to: queries });
    }
    let mut found = vec![TileSoftmax::<N>::EMPTY; panels];
    for (place, positions) in source.pieces(block.head, keys, TILE) {
        tile.read(isa, source, block, (place, positions.clone()), R);
        let panels = block.items.chunks(N * LANES).zip(queries.chunks_exact(d)).zip(&mut found);
        for (((items, queries), found), weighted) in panels.zip(weighted.chunks_exact_mut(N * d)) {
            let positions = positions.clone();
            let (call, b) = (source.call, block.sequence);
            isa.run(Add::<_, R, N> { call, b, items, queries, found, weighted, tile, positions, products });
        }
    }
    let found = found.iter().flat_map(|found| found.max.as_flattened().iter().zip(found.sum.as_flattened()));
    let weighted = weighted.as_flattened().chunks_exact(d);
    let states = found.zip(weighted).map(|((&max, &sum), weighted)| SoftmaxState::of(max, sum, weighted.to_vec()));
    states.take(block.items.len()).collect()
}

/// The queries of `items` of sequence `b`, to be read, each into a lane of `to`, `[D]`.
struct Transpose<'s, 'c, T, const N: usize> {
    call: &'s Attention<'c, T>,
    b: usize,
    items: &'s [(usize, usize)],
    to: &'s mut [Panel<N>],
}

impl<T: Element, const N: usize> Work for Transpose<'_, '_, T, N> {
    type Output = ();

    #[inline(always)]
    fn with<I: Isa>(self, _: I) {
        let Self { call, b, items, to } = self;
        let mut query = [0.0; MAX_HEAD_DIM];
        let query = &mut query[..to.len()];
        for (lane, &(head, i)) in items.iter().enumerate() {
            call.tokens.query(b, head, i, query);
            to.iter_mut().zip(&*query).for_each(|(to, x)| to.as_flattened_mut()[lane] = *x);
        }
    }
}

/// A tile to be added to what some queries of sequence `b` found. Their products with its keys stay in the nearest
/// cache.
struct Add<'s, 'c, T, const R: usize, const N: usize> {
    call: &'s Attention<'c, T>,
    b: usize,
    /// Query head and new token of each; the last ones may be fewer.
    items: &'s [(usize, usize)],
    /// `[D]`
    queries: &'s [Panel<N>],
    found: &'s mut TileSoftmax<N>,
    /// `[queries, D]`
    weighted: &'s mut [[f32; LANES]],
    tile: &'s Tile,
    positions: Range<usize>,
    products: &'s mut [Panel<N>],
}

impl<T: Element, const R: usize, const N: usize> Work for Add<'_, '_, T, R, N> {
    type Output = ();

    #[inline(always)]
    fn with<I: Isa>(self, isa: I) {
        let v = isa.vector();
        let Self { call, b, items, queries, found, weighted, tile, positions, products } = self;
        let width = queries.len() / LANES;
        // Keys that some of the queries see.
        let seen = items.iter().map(|&(_, i)| call.seen_by(b, i)).filter(|seen| !seen.is_empty());
        let seen = seen.reduce(|all, seen| all.start.min(seen.start)..all.end.max(seen.end)).unwrap_or(0..0);
        let keys = seen.start.max(positions.start)..seen.end.min(positions.end);
        if keys.is_empty() {
            return;
        }
        let first = keys.start - positions.start;
        let products = &mut products[..keys.len().next_multiple_of(R)];
        let rows = tile.key()[first * width..].chunks_exact(R * width);
        for (rows, products) in rows.zip(products.as_chunks_mut::<R>().0) {
            multiply_rows(v, rows, queries, products);
        }
        let products = &mut products[..keys.len()];
        if let Some(rescale) = found.weigh(v, call, (b, items), keys, products) {
            for (&rescale, weighted) in rescale.as_flattened().iter().zip(weighted.chunks_exact_mut(width)) {
                if rescale != 1.0 {
                    for weighted in weighted {
                        v.store(v.mul(v.load(weighted), v.splat(rescale)), weighted);
                    }
                }
            }
        }
        let values = &tile.value()[first * width..];
        let used = items.len().next_multiple_of(R) * width;
        for n in (0..width).step_by(N) {
            for (at, weighted) in weighted[..used].chunks_exact_mut(R * width).enumerate() {
                let (columns, values) = ((&*products, at * R), (values, n));
                match width - n < N {
                    false => add_columns::<_, R, N, N>(v, columns, values, weighted, width),
                    true => add_columns::<_, R, 1, N>(v, columns, values, weighted, width),
                }
            }
        }
    }
}
