//! Many queries: tiles of keys and values in float32, multiplied with a few vectors of queries after the other.

use std::ops::Range;

use super::columns::Columns;
use super::multiply::{self, Side};
use super::tile::Tile;
use super::{Block, Fast};
use crate::cpu::vector::{LANES, Vector, Work};
use crate::cpu::{Attention, SoftmaxState};
use crate::element::Element;
use crate::format::MAX_HEAD_DIM;

/// Keys of a tile: the weights of a few queries and a few channels of the values stay in the nearest cache, all else in
/// the next one.
const TILE: usize = 128;

/// Memory to work in. It serves one block after the other: the system would take it back between them, and give it anew.
#[derive(Default)]
pub(super) struct Scratch {
    tile: Tile,
    /// Products of a tile's keys with some queries, then weights.
    products: Vec<[f32; LANES]>,
    /// `[D, queries]` of some queries after the other.
    queries: Vec<[f32; LANES]>,
    /// Weighted sums of values, `[queries, D]`.
    weighted: Vec<[f32; LANES]>,
}

/// What the queries of `block` get from the keys at positions `keys`.
pub(super) fn attend<T: Element, V: Vector>(
    fast: &Fast<'_, '_, T, V>,
    block: &Block,
    keys: Range<usize>,
) -> Vec<SoftmaxState> {
    let mut scratch = fast.scratch.lock().unwrap().pop().unwrap_or_default();
    // As many sums as there are registers for, yet more than an addition takes cycles.
    let states = match V::REGISTERS {
        1 => by_sides::<T, V, 8, 2>(fast, block, keys, &mut scratch),
        2 => by_sides::<T, V, 4, 1>(fast, block, keys, &mut scratch),
        _ => by_sides::<T, V, 2, 1>(fast, block, keys, &mut scratch),
    };
    fast.scratch.lock().unwrap().push(scratch);
    states
}

/// The same, `N` vectors of queries at a time, with `R` keys or `R` of the queries at once.
fn by_sides<T: Element, V: Vector, const R: usize, const N: usize>(
    fast: &Fast<'_, '_, T, V>,
    block: &Block,
    keys: Range<usize>,
    scratch: &mut Scratch,
) -> Vec<SoftmaxState> {
    let d = fast.call.geometry.head_dim();
    let Scratch { tile, products, queries, weighted } = scratch;
    let sides = block.items.len().div_ceil(N * LANES);
    products.resize((TILE + R) * N, [0.0; LANES]);
    for all in [&mut *queries, &mut *weighted] {
        all.clear();
        all.resize(sides * N * d, [0.0; LANES]);
    }
    let products = products.as_chunks_mut::<N>().0;
    let queries = queries.as_chunks_mut::<N>().0;
    for (items, queries) in block.items.chunks(N * LANES).zip(queries.chunks_exact_mut(d)) {
        transpose(fast, block.sequence, items, queries);
    }
    let mut found = vec![Columns::<N>::NONE; sides];
    for (place, positions) in fast.pieces(block.head, keys, TILE) {
        tile.read(fast, block, (place, positions.clone()), R);
        let sides = block.items.chunks(N * LANES).zip(queries.chunks_exact(d)).zip(&mut found);
        for (((items, queries), found), weighted) in sides.zip(weighted.chunks_exact_mut(N * d)) {
            let positions = positions.clone();
            let (call, b) = (fast.call, block.sequence);
            // SAFETY: a path is only taken on processors that have its instructions.
            unsafe { V::run(Add::<_, R, N> { call, b, items, queries, found, weighted, tile, positions, products }) };
        }
    }
    let found = found.iter().flat_map(|found| found.max.as_flattened().iter().zip(found.sum.as_flattened()));
    let weighted = weighted.as_flattened().chunks_exact(d);
    let states = found.zip(weighted).map(|((&max, &sum), weighted)| SoftmaxState::of(max, sum, weighted.to_vec()));
    states.take(block.items.len()).collect()
}

/// Reads the queries of `items` of sequence `b`, each into a lane of `to`, `[D]`.
fn transpose<T: Element, V, const N: usize>(
    fast: &Fast<'_, '_, T, V>,
    b: usize,
    items: &[(usize, usize)],
    to: &mut [Side<N>],
) {
    let mut query = [0.0; MAX_HEAD_DIM];
    let query = &mut query[..to.len()];
    for (lane, &(head, i)) in items.iter().enumerate() {
        fast.call.tokens.query(b, head, i, query);
        to.iter_mut().zip(&*query).for_each(|(to, x)| to.as_flattened_mut()[lane] = *x);
    }
}

/// A tile to be added to what some queries of sequence `b` found. Their products with its keys stay in the nearest cache.
struct Add<'s, 'c, T, const R: usize, const N: usize> {
    call: &'s Attention<'c, T>,
    b: usize,
    /// Query head and new token of each; the last ones may be fewer.
    items: &'s [(usize, usize)],
    /// `[D]`
    queries: &'s [Side<N>],
    found: &'s mut Columns<N>,
    /// `[queries, D]`
    weighted: &'s mut [[f32; LANES]],
    tile: &'s Tile,
    positions: Range<usize>,
    products: &'s mut [Side<N>],
}

impl<T: Element, const R: usize, const N: usize> Work for Add<'_, '_, T, R, N> {
    type Output = ();

    #[inline(always)]
    unsafe fn with<V: Vector>(self) {
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
        // SAFETY: by the trait's contract.
        unsafe {
            let rows = tile.key()[first * width..].chunks_exact(R * width);
            for (rows, products) in rows.zip(products.as_chunks_mut::<R>().0) {
                multiply::rows::<V, R, N>(rows, queries, products);
            }
            let products = &mut products[..keys.len()];
            if let Some(rescale) = found.weigh::<T, V>(call, (b, items), keys, products) {
                for (&rescale, weighted) in rescale.as_flattened().iter().zip(weighted.chunks_exact_mut(width)) {
                    if rescale != 1.0 {
                        for weighted in weighted {
                            V::store(V::mul(V::load(weighted), V::splat(rescale)), weighted);
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
                        false => multiply::add_columns::<V, R, N, N>(columns, values, weighted, width),
                        true => multiply::add_columns::<V, R, 1, N>(columns, values, weighted, width),
                    }
                }
            }
        }
    }
}
