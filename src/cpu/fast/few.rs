//! A few queries: rows are read as they are stored, once for up to eight queries.

use std::ops::Range;

use super::keys::{KeyReader, Sink};
use super::values::{Sums, Weights, add_dense, add_rows, in_order};
use super::{AHEAD, Block, Fast, Place, fetch, scores, whole};
use crate::cpu::SoftmaxState;
use crate::cpu::vector::{LANES, Vector, Work};
use crate::element::Element;
use crate::format::KeyLayout;

/// Keys whose scores are found before their values are added.
pub(super) const CHUNK: usize = 64;

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
            match block.items.len() - first {
                8.. => V::run(Some::<_, _, 8> { fast, block, first, keys }),
                4.. => V::run(Some::<_, _, 4> { fast, block, first, keys }),
                2.. => V::run(Some::<_, _, 2> { fast, block, first, keys }),
                _ => V::run(Some::<_, _, 1> { fast, block, first, keys }),
            }
        });
    }
    states
}

/// `H` queries from number `first` on.
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

/// Products of a key with `H` queries.
struct Products<'a, V: Vector, const H: usize> {
    queries: &'a [Sums<H>],
    lanes: [V::Lanes; H],
}

impl<V: Vector, const H: usize> Sink<V> for Products<'_, V, H> {
    #[inline(always)]
    unsafe fn take(&mut self, n: usize, x: V::Lanes) {
        for h in 0..H {
            // SAFETY: by the trait's contract.
            self.lanes[h] = unsafe { V::mul_add(x, V::load(&self.queries[n].0[h]), self.lanes[h]) };
        }
    }
}

/// What `H` queries from number `first` on get from the keys at positions `keys`.
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
    let items = &block.items[first..first + H];
    let (key_layout, value_layout) = (&call.geometry.key, &call.geometry.value);
    let reader = KeyReader::new(key_layout, fast.recovers());
    let scale = call.scale[block.scale.clone()].as_chunks::<LANES>().0;
    let queries: Vec<Sums<H>> = (0..blocks)
        .map(|n| {
            let channels = |h| *block.queries[(first + h) * d + n * LANES..].first_chunk().expect("a block");
            Sums(std::array::from_fn(channels))
        })
        .collect();
    // q~ = q * c, for rows in units of c.
    let mut for_rows = queries.clone();
    if reader.in_units() {
        for (query, scale) in for_rows.iter_mut().zip(scale) {
            query.0.iter_mut().for_each(|q| q.iter_mut().zip(scale).for_each(|(q, c)| *q *= c));
        }
    }
    let mut whole_keys = if V::WHOLE { whole_keys(&reader, key_layout, &for_rows) } else { None };
    let whole_values = V::WHOLE && whole::takes_values(value_layout);
    let mut max = [f32::NEG_INFINITY; H];
    let mut sum = [0.0; H];
    let mut sums: Vec<Sums<H>> = vec![Sums([[0.0; LANES]; H]); blocks];
    let mut by_parity = true;
    let (past_key, past_value) = (call.past_key[block.head], call.past_value[block.head]);
    let past = call.lengths.past[block.sequence];
    for (place, positions) in fast.pieces(block.sequence, keys, CHUNK) {
        let count = positions.len();
        let mut products = [[[0.0; LANES]; CHUNK / LANES]; H];
        // SAFETY: as the caller.
        unsafe {
            match place {
                Place::Rows
                    if let Some(keys) = &mut whole_keys
                        && keys.products(
                            &past_key[positions.start * key_layout.row_bytes()..],
                            count,
                            &mut products,
                        ) => {}
                Place::Rows => {
                    for key in 0..count {
                        let row = positions.start + key;
                        fetch(past_key, (row + AHEAD) * key_layout.row_bytes(), key_layout.row_bytes());
                        fetch(past_value, row * value_layout.row_bytes(), value_layout.row_bytes());
                        let rows = &past_key[row * key_layout.row_bytes()..];
                        let mut sink = Products::<V, H> { queries: &for_rows, lanes: [V::splat(0.0); H] };
                        reader.read::<V>(rows, scale, &mut sink);
                        put(&mut products, key, V::sums(sink.lanes));
                    }
                }
                Place::Recent => dense::<V, H>(&fast.recent(block, positions.clone()), &queries, &mut products),
                Place::New => {
                    let [new, _] = fast.new.rows(block.head, positions.start - past, positions.end - past);
                    dense::<V, H>(new.as_slice().expect("contiguous"), &queries, &mut products);
                }
            }
            let used = count.div_ceil(LANES);
            for h in 0..H {
                let products = &mut products[h][..used];
                let (head, token) = items[h];
                let query = (block.sequence, head, token);
                let state = (&mut max[h], &mut sum[h]);
                let rescale = scores::to_weights::<T, V>(call, query, positions.clone(), products, state);
                if rescale != 1.0 {
                    for sums in &mut sums {
                        V::store(V::mul(V::load(&sums.0[h]), V::splat(rescale)), &mut sums.0[h]);
                    }
                }
            }
            match place {
                Place::New => {
                    if std::mem::take(&mut by_parity) {
                        in_order(value_layout, &mut sums);
                    }
                    let [_, new] = fast.new.rows(block.head, positions.start - past, positions.end - past);
                    add_dense::<V, H>(new.as_slice().expect("contiguous"), count, &by_key(&products), &mut sums);
                }
                _ => {
                    let bytes = value_layout.row_bytes();
                    let rows = &past_value[positions.start * bytes..positions.end * bytes];
                    if whole_values {
                        whole::add_rows(value_layout, rows, count, &products, &mut sums);
                    } else {
                        add_rows::<V, H>(value_layout, rows, count, &by_key(&products), &mut sums);
                    }
                }
            }
        }
    }
    if by_parity {
        in_order(value_layout, &mut sums);
    }
    let weighted = |h: usize| sums.iter().flat_map(|sums| sums.0[h]).collect();
    (0..H).map(|h| SoftmaxState::of(max[h], sum[h], weighted(h))).collect()
}

/// The queries in whole numbers, where rows can be read so.
fn whole_keys<'a, const H: usize>(
    reader: &KeyReader<'a>,
    layout: &'a KeyLayout,
    queries: &[Sums<H>],
) -> Option<whole::Keys<'a, H>> {
    let queries: [Vec<f32>; H] = std::array::from_fn(|h| queries.iter().flat_map(|block| block.0[h]).collect());
    whole::Keys::new(layout, reader.recovers(), queries.each_ref().map(|q| &q[..]))
}

/// Weights by key.
#[inline(always)]
fn by_key<const H: usize>(weights: &[[[f32; LANES]; CHUNK / LANES]; H]) -> Weights<H> {
    let mut by_key = [[0.0; H]; CHUNK];
    for (h, weights) in weights.iter().enumerate() {
        for (of_key, &p) in by_key.iter_mut().zip(weights.as_flattened()) {
            of_key[h] = p;
        }
    }
    by_key
}

/// Products of one key with all queries.
#[inline(always)]
fn put<const H: usize>(products: &mut [[[f32; LANES]; CHUNK / LANES]; H], key: usize, of: [f32; H]) {
    for (products, x) in products.iter_mut().zip(of) {
        products[key / LANES][key % LANES] = x;
    }
}

/// Products of dense `keys`, `[keys, D]`, with the queries.
#[inline(always)]
unsafe fn dense<V: Vector, const H: usize>(
    keys: &[f32],
    queries: &[Sums<H>],
    products: &mut [[[f32; LANES]; CHUNK / LANES]; H],
) {
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
