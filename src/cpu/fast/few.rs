//! A few queries: rows are read as they are stored, once for up to eight queries.

use std::ops::Range;

use super::ahead::Ahead;
use super::halves::{self, Halves};
use super::keys::{KeyReader, Sink};
use super::values::{Sums, add_dense, add_rows, in_order};
use super::{Block, Fast, Place, scores, whole};
use crate::cpu::SoftmaxState;
use crate::cpu::vector::{LANES, Vector, Work, finite};
use crate::element::Element;
use crate::format::MAX_HEAD_DIM;

/// Most blocks of channels.
const MOST_BLOCKS: usize = MAX_HEAD_DIM / LANES;

/// Keys whose scores are found before their values are added.
pub(super) const CHUNK: usize = 128;

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

/// Products of a key with `H` queries.
#[derive(Clone, Copy)]
struct Products<'a, V: Vector, const H: usize> {
    queries: &'a [Sums<H>],
    lanes: [V::Lanes; H],
}

impl<V: Vector, const H: usize> Sink<V> for Products<'_, V, H> {
    #[inline(always)]
    unsafe fn take(&mut self, n: usize, x: V::Lanes) {
        debug_assert!(n < self.queries.len());
        // SAFETY: by the trait's contract, and queries have all blocks of the head.
        let queries = unsafe { self.queries.get_unchecked(n) };
        for (lanes, query) in self.lanes.iter_mut().zip(&queries.0) {
            // SAFETY: by the trait's contract.
            *lanes = unsafe { V::mul_add(x, V::load(query), *lanes) };
        }
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
    let mut scratch = whole::Scratch::<H>::NONE;
    let whole::Scratch { keys: for_keys, weights: for_weights } = &mut scratch;
    let mut whole_keys = None;
    if V::WHOLE {
        let by_head = by_head(for_rows);
        // SAFETY: as the caller.
        whole_keys = unsafe {
            whole::Keys::new(key_layout, reader.recovers(), by_head.each_ref().map(|query| &query[..d]), for_keys)
        };
    }
    let mut for_halves = halves::Scratch::NONE;
    let mut half_keys = None;
    if V::WIDE {
        half_keys = Halves::new(key_layout, reader.recovers(), (&*queries, scale), &mut for_halves);
    }
    let whole_values = V::WHOLE && whole::takes_values(value_layout);
    let mut max = [f32::NEG_INFINITY; H];
    let mut sum = [0.0; H];
    let mut by_parity = true;
    let (past_key, past_value) = (call.past_key[block.head], call.past_value[block.head]);
    let past = call.lengths.past[block.sequence];
    for (place, positions) in fast.pieces(block.sequence, keys, CHUNK) {
        let count = positions.len();
        let mut products = [[[0.0; LANES]; CHUNK / LANES]; H];
        let (key_bytes, value_bytes) = (key_layout.row_bytes(), value_layout.row_bytes());
        let (stored, first) = (matches!(place, Place::Rows | Place::Recent), positions.start);
        let key_rows = if stored { &past_key[first * key_bytes..] } else { &[] };
        let value_rows = if stored { &past_value[first * value_bytes..] } else { &[] };
        let ahead = &Ahead::new((key_rows, key_bytes), (value_rows, value_bytes));
        // SAFETY: as the caller.
        unsafe {
            match place {
                Place::Rows
                    if let Some(keys) = &mut whole_keys
                        && keys.products(key_rows, count, ahead, &mut products) => {}
                Place::Rows => {
                    let read = match &mut half_keys {
                        Some(keys) => keys.products(key_rows, count, ahead, &mut products),
                        None => 0,
                    };
                    let of = Stored { reader: &reader, rows: key_rows, read, count, ahead };
                    // Infinity and NaN, which are rare, show in the products.
                    if !of.products::<V, H, false>(scale, for_rows, &mut products) {
                        of.products::<V, H, true>(scale, for_rows, &mut products);
                    }
                }
                Place::Recent => dense::<V, H>(&fast.recent(block, positions.clone()), queries, &mut products),
                Place::New => {
                    let [new, _] = fast.new.rows(block.head, positions.start - past, positions.end - past);
                    dense::<V, H>(new.as_slice().expect("contiguous"), queries, &mut products);
                }
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
                    let [_, new] = fast.new.rows(block.head, positions.start - past, positions.end - past);
                    add_dense::<V, H>(new.as_slice().expect("contiguous"), count, &products, sums);
                }
                _ => {
                    let rows = (&value_rows[..count * value_bytes], count);
                    if whole_values {
                        whole::add_rows(value_layout, rows, ahead, &products, for_weights, sums);
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

/// Queries by head, `[D]` each.
fn by_head<const H: usize>(queries: &[Sums<H>]) -> [[f32; MAX_HEAD_DIM]; H] {
    let mut by_head = [[0.0; MAX_HEAD_DIM]; H];
    for (h, query) in by_head.iter_mut().enumerate() {
        query.as_chunks_mut().0.iter_mut().zip(queries).for_each(|(to, of)| *to = of.0[h]);
    }
    by_head
}

/// Rows to be multiplied with queries.
struct Stored<'a> {
    reader: &'a KeyReader<'a>,
    /// Begins with `count` rows, of which `read` have their products.
    rows: &'a [u8],
    read: usize,
    count: usize,
    ahead: &'a Ahead<'a>,
}

impl Stored<'_> {
    /// Products of the rows with the queries; false if they are not finite, as without `SPECIAL` if a row has infinity or
    /// NaN.
    #[inline(always)]
    unsafe fn products<V: Vector, const H: usize, const SPECIAL: bool>(
        &self,
        scale: &[[f32; LANES]],
        queries: &[Sums<H>],
        products: &mut [[[f32; LANES]; CHUNK / LANES]; H],
    ) -> bool {
        // SAFETY: as the caller.
        unsafe {
            let mut key = self.read;
            if V::PAIRS {
                while key + 2 <= self.count {
                    self.some::<V, H, SPECIAL, 2>(key, scale, queries, products);
                    key += 2;
                }
            }
            while key < self.count {
                self.some::<V, H, SPECIAL, 1>(key, scale, queries, products);
                key += 1;
            }
            products.as_flattened().iter().all(|products| finite::<V>(&[V::load(products)]))
        }
    }

    /// Of `R` rows from number `key` on.
    #[inline(always)]
    unsafe fn some<V: Vector, const H: usize, const SPECIAL: bool, const R: usize>(
        &self,
        key: usize,
        scale: &[[f32; LANES]],
        queries: &[Sums<H>],
        products: &mut [[[f32; LANES]; CHUNK / LANES]; H],
    ) {
        let bytes = self.reader.row_bytes();
        let rows: [&[u8]; R] = std::array::from_fn(|n| &self.rows[(key + n) * bytes..]);
        // SAFETY: as the caller.
        unsafe {
            let mut sinks = [Products::<V, H> { queries, lanes: [V::splat(0.0); H] }; R];
            self.reader.read_together::<V, _, SPECIAL, R>(rows, scale, &mut sinks);
            for (n, sink) in sinks.iter().enumerate() {
                self.ahead.at_key(key + n);
                put(products, key + n, V::sums(sink.lanes));
            }
        }
    }
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
