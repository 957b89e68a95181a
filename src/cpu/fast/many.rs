//! Many queries: tiles of keys and values as matrices, multiplied by `ndarray`'s matrix product.

use std::ops::Range;

use ndarray::linalg::general_mat_mul;
use ndarray::{Array2, ArrayView2, s};

use super::keys::{KeyReader, Sink};
use super::{Block, Fast, Place, scores, values};
use crate::cpu::vector::{LANES, Vector, Work};
use crate::cpu::{Attention, SoftmaxState};
use crate::element::Element;

/// Keys of a tile: its scores, with 128 queries, stay in a core's own cache.
const TILE: usize = 256;

/// What the queries of `block` get from the keys at positions `keys`.
pub(super) fn attend<T: Element, V: Vector>(
    fast: &Fast<'_, '_, T, V>,
    block: &Block,
    keys: Range<usize>,
) -> Vec<SoftmaxState> {
    let d = fast.call.geometry.head_dim();
    let count = block.items.len();
    let queries = ArrayView2::from_shape((count, d), &block.queries).expect("as many as items");
    let mut products = Array2::<f32>::zeros((count, TILE));
    let mut sums = Array2::<f32>::zeros((count, d));
    let mut state = vec![(f32::NEG_INFINITY, 0.0); count];
    let mut tile = Tile { key: Vec::new(), value: Vec::new() };
    let past = fast.call.lengths.past[block.sequence];
    for (place, positions) in fast.pieces(block.sequence, keys, TILE) {
        let width = positions.len().next_multiple_of(LANES);
        let [key, value] = match place {
            Place::New => fast.new.rows(block.head, positions.start - past, positions.end - past),
            // SAFETY: a path is only taken on processors that have its instructions.
            _ => unsafe {
                V::run(Decode { tile: &mut tile, fast, block, place: &place, positions: positions.clone() })
            },
        };
        general_mat_mul(1.0, &queries, &key.t(), 0.0, &mut products.slice_mut(s![.., ..positions.len()]));
        for (n, (&(head, i), (max, sum))) in block.items.iter().zip(&mut state).enumerate() {
            let mut products = products.row_mut(n);
            let products = &mut products.as_slice_mut().expect("rows are contiguous")[..width];
            let products = products.as_chunks_mut::<LANES>().0;
            let query = (block.sequence, head, i);
            let row = Row { call: fast.call, query, positions: positions.clone(), products, max, sum };
            // SAFETY: a path is only taken on processors that have its instructions.
            let rescale = unsafe { V::run(row) };
            if rescale != 1.0 {
                sums.row_mut(n).iter_mut().for_each(|x| *x *= rescale);
            }
        }
        general_mat_mul(1.0, &products.slice(s![.., ..positions.len()]), &value, 1.0, &mut sums);
    }
    let weighted = sums.outer_iter().map(|row| row.to_vec());
    state.into_iter().zip(weighted).map(|((max, sum), weighted)| SoftmaxState::of(max, sum, weighted)).collect()
}

/// Products of one query with a tile's keys, to become weights.
struct Row<'a, 'c, T> {
    call: &'a Attention<'c, T>,
    query: (usize, usize, usize),
    positions: Range<usize>,
    products: &'a mut [[f32; LANES]],
    max: &'a mut f32,
    sum: &'a mut f32,
}

impl<T: Element> Work for Row<'_, '_, T> {
    /// By what earlier sums are to be multiplied.
    type Output = f32;

    #[inline(always)]
    unsafe fn with<V: Vector>(self) -> f32 {
        let Row { call, query, positions, products, max, sum } = self;
        // SAFETY: by the trait's contract.
        unsafe { scores::to_weights::<T, V>(call, query, positions, products, (max, sum)) }
    }
}

/// Rows to be decoded into a tile.
struct Decode<'s, 'a, 'c, T, P> {
    tile: &'s mut Tile,
    fast: &'s Fast<'a, 'c, T, P>,
    block: &'s Block,
    place: &'s Place,
    positions: Range<usize>,
}

impl<'s, T: Element, P: Vector> Work for Decode<'s, '_, '_, T, P> {
    type Output = [ArrayView2<'s, f32>; 2];

    #[inline(always)]
    unsafe fn with<V: Vector>(self) -> Self::Output {
        // SAFETY: by the trait's contract.
        unsafe { self.tile.decode::<T, V, P>(self.fast, self.block, self.place, self.positions) }
    }
}

/// A key, as it is read, in a tile.
struct Kept<'a> {
    key: &'a mut [[f32; LANES]],
    scale: &'a [[f32; LANES]],
    in_units: bool,
}

impl<V: Vector> Sink<V> for Kept<'_> {
    #[inline(always)]
    unsafe fn take(&mut self, n: usize, x: V::Lanes) {
        // SAFETY: by the trait's contract.
        unsafe { V::store(if self.in_units { V::mul(x, V::load(&self.scale[n])) } else { x }, &mut self.key[n]) }
    }
}

/// Decoded keys and values, `[keys, D]` each.
struct Tile {
    key: Vec<[f32; LANES]>,
    value: Vec<[f32; LANES]>,
}

impl Tile {
    /// Decodes rows, or takes dense keys, at `positions`.
    ///
    /// # Safety
    /// The processor has the instructions of `V`.
    #[inline(always)]
    unsafe fn decode<T: Element, V: Vector, P: Vector>(
        &mut self,
        fast: &Fast<'_, '_, T, P>,
        block: &Block,
        place: &Place,
        positions: Range<usize>,
    ) -> [ArrayView2<'_, f32>; 2] {
        let call = fast.call;
        let (key_layout, value_layout) = (&call.geometry.key, &call.geometry.value);
        let d = call.geometry.head_dim();
        let blocks = d / LANES;
        let (key_rows, value_rows) = (call.past_key[block.head], call.past_value[block.head]);
        self.key.resize(positions.len() * blocks, [0.0; LANES]);
        self.value.resize(positions.len() * blocks, [0.0; LANES]);
        let reader = KeyReader::new(key_layout, fast.recovers());
        let scale = call.scale[block.scale.clone()].as_chunks::<LANES>().0;
        match place {
            Place::Rows => {
                for (position, key) in positions.clone().zip(self.key.chunks_exact_mut(blocks)) {
                    let mut sink = Kept { key, scale, in_units: reader.in_units() };
                    // SAFETY: as this function.
                    unsafe { reader.read::<V, true>(&key_rows[position * key_layout.row_bytes()..], scale, &mut sink) };
                }
            }
            _ => self.key.as_flattened_mut().copy_from_slice(&fast.recent(block, positions.clone())),
        }
        for (position, value) in positions.clone().zip(self.value.chunks_exact_mut(blocks)) {
            // SAFETY: as this function.
            unsafe { values::decode::<V>(value_layout, &value_rows[position * value_layout.row_bytes()..], value) };
        }
        [&self.key, &self.value]
            .map(|x| ArrayView2::from_shape((positions.len(), d), x.as_flattened()).expect("as many as positions"))
    }
}
