//! Many queries: tiles of keys and values as matrices, multiplied by `ndarray`'s matrix product.

use std::ops::Range;

use ndarray::linalg::general_mat_mul;
use ndarray::{Array2, ArrayView2, ArrayViewMut2, s};

use super::columns::Columns;
use super::tile::Tile;
use super::{Block, Fast};
use crate::cpu::SoftmaxState;
use crate::cpu::vector::{LANES, Vector};
use crate::element::Element;

/// Keys of a tile: its scores, with 256 queries, stay in a core's own cache.
const TILE: usize = 256;
/// Keys of a tile among the block's own tokens, of which each query sees but those up to itself.
const OWN_TILE: usize = 32;

/// What the queries of `block` get from the keys at positions `keys`.
pub(super) fn attend<T: Element, V: Vector>(
    fast: &Fast<'_, '_, T, V>,
    block: &Block,
    keys: Range<usize>,
) -> Vec<SoftmaxState> {
    let call = fast.call;
    let d = call.geometry.head_dim();
    let count = block.items.len();
    let width = count.next_multiple_of(LANES);
    // [D, queries], so that the matrix product finds lines of what it wants side by side: it copies such lines as they are.
    let mut queries = Array2::<f32>::zeros((d, width));
    let given = ArrayView2::from_shape((count, d), &block.queries).expect("as many as items");
    queries.slice_mut(s![.., ..count]).assign(&given.t());
    let mut products = vec![[0.0; LANES]; TILE.min(keys.len()) * width / LANES];
    let mut sums = Array2::<f32>::zeros((count, d));
    let mut columns = Columns::new(count);
    let mut tile = Tile::default();
    let own = (call.lengths.past[block.sequence] + block.items[0].1).clamp(keys.start, keys.end);
    let others = fast.pieces(block.sequence, keys.start..own, TILE);
    for (place, positions) in others.chain(fast.pieces(block.sequence, own..keys.end, OWN_TILE)) {
        // Queries of earlier tokens may see nothing of the tile.
        let sees = |&(_, i): &(usize, usize)| call.seen_by(block.sequence, i).end > positions.start;
        let from = block.items.iter().position(sees).unwrap_or(0) / LANES * LANES;
        let [key, value] = tile.read(fast, block, (place, positions.clone()));
        let products = &mut products[..positions.len() * (width - from) / LANES];
        let shape = (positions.len(), width - from);
        let mut matrix = ArrayViewMut2::from_shape(shape, products.as_flattened_mut()).expect("as many as products");
        general_mat_mul(1.0, &key, &queries.slice(s![.., from..]), 0.0, &mut matrix);
        let rescale = columns.weigh::<T, V>(call, block, from..count, positions, products);
        let mut sums = sums.slice_mut(s![from.., ..]);
        for (&rescale, mut sums) in rescale.as_flattened().iter().zip(sums.rows_mut()) {
            if rescale != 1.0 {
                sums.iter_mut().for_each(|x| *x *= rescale);
            }
        }
        let weights = ArrayView2::from_shape(shape, products.as_flattened()).expect("as many as products");
        general_mat_mul(1.0, &weights.slice(s![.., ..count - from]).t(), &value, 1.0, &mut sums);
    }
    let found = columns.max.as_flattened().iter().zip(columns.sum.as_flattened());
    let sums = sums.as_slice().expect("contiguous").chunks_exact(d);
    found.zip(sums).map(|((&max, &sum), weighted)| SoftmaxState::of(max, sum, weighted.to_vec())).collect()
}
