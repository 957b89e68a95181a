//! Products of a few queries with key rows as they are stored, the fastest way that processor, rows and queries allow.

use super::ahead::Ahead;
use super::few::ByKey;
use super::halves::{self, Halves};
use super::keys::{KeyReader, Sink};
use super::values::Sums;
use super::whole;
use crate::cpu::vector::{LANES, Vector, finite};

/// Room for what is known of a chunk while it is read.
pub(super) struct Scratch {
    whole: whole::KeyScratch,
    halves: halves::Scratch,
}

impl Scratch {
    pub(super) const NONE: Self = Self { whole: whole::KeyScratch::NONE, halves: halves::Scratch::NONE };
}

/// `H` queries for key rows.
pub(super) struct StoredKeys<'a, V, const H: usize> {
    reader: KeyReader<'a>,
    /// Block by block; in units of c where rows are.
    queries: &'a [Sums<H>],
    /// c, block by block.
    scale: &'a [[f32; LANES]],
    /// In whole numbers, where rows can be read so.
    whole: Option<whole::Keys<'a, H>>,
    /// With the registers of AVX-512, likewise.
    halves: Option<Halves<'a, H>>,
    vector: std::marker::PhantomData<V>,
}

impl<'a, V: Vector, const H: usize> StoredKeys<'a, V, H> {
    /// For `queries`, in units of c where rows are, and channel scale c, block by block.
    ///
    /// # Safety
    /// The processor has the instructions of `V`.
    #[inline(always)]
    pub(super) unsafe fn new(
        reader: KeyReader<'a>,
        queries: &'a [Sums<H>],
        scale: &'a [[f32; LANES]],
        scratch: &'a mut Scratch,
    ) -> Self {
        assert_eq!(queries.len() * LANES, reader.layout().head_dim(), "queries have all blocks of the head");
        let Scratch { whole: for_whole, halves: for_halves } = scratch;
        let (mut whole, mut halves) = (None, None);
        if V::WHOLE {
            // SAFETY: as this function.
            whole = unsafe { whole::Keys::new(reader.layout(), reader.recovers(), queries, for_whole) };
        }
        if V::WIDE {
            halves = Halves::new(reader.layout(), reader.recovers(), (queries, scale), for_halves);
        }
        Self { reader, queries, scale, whole, halves, vector: std::marker::PhantomData }
    }

    /// Puts the products of the `count` first of `rows` into `products`.
    ///
    /// # Safety
    /// The processor has the instructions of `V`.
    #[inline(always)]
    pub(super) unsafe fn products(&mut self, rows: &[u8], count: usize, ahead: &Ahead, products: &mut ByKey<H>) {
        // SAFETY: as this function.
        unsafe {
            if let Some(whole) = &mut self.whole
                && whole.products(rows, count, ahead, products)
            {
                return;
            }
            let read = match &mut self.halves {
                Some(halves) => halves.products(rows, count, ahead, products),
                None => 0,
            };
            let rest = Rest { rows, keys: read..count, ahead };
            // Infinity and NaN, which are rare, show in the products.
            if !self.with_vectors::<false>(&rest, products) {
                self.with_vectors::<true>(&rest, products);
            }
        }
    }

    /// Products of what is left with vectors of any kind; false if some are not finite, as without `SPECIAL` if a row has
    /// infinity or NaN.
    #[inline(always)]
    unsafe fn with_vectors<const SPECIAL: bool>(&self, rest: &Rest, products: &mut ByKey<H>) -> bool {
        // SAFETY: as the caller.
        unsafe {
            let mut key = rest.keys.start;
            // Where a vector takes one register, there are enough for products with two keys.
            if V::REGISTERS == 1 {
                while key + 2 <= rest.keys.end {
                    self.together::<SPECIAL, 2>(rest, key, products);
                    key += 2;
                }
            }
            while key < rest.keys.end {
                self.together::<SPECIAL, 1>(rest, key, products);
                key += 1;
            }
        }
        // SAFETY: as the caller.
        products.as_flattened().iter().all(|products| unsafe { finite::<V>(&[V::load(products)]) })
    }

    /// Of `R` rows from number `key` on.
    #[inline(always)]
    unsafe fn together<const SPECIAL: bool, const R: usize>(&self, rest: &Rest, key: usize, products: &mut ByKey<H>) {
        let bytes = self.reader.layout().row_bytes();
        let rows: [&[u8]; R] = std::array::from_fn(|n| &rest.rows[(key + n) * bytes..]);
        // SAFETY: as the caller.
        unsafe {
            let mut sinks = [Product::<V, H> { queries: self.queries, lanes: [V::splat(0.0); H] }; R];
            self.reader.read_together::<V, _, SPECIAL, R>(rows, self.scale, &mut sinks);
            for (n, sink) in sinks.iter().enumerate() {
                rest.ahead.at_key(key + n);
                put(products, key + n, V::sums(sink.lanes));
            }
        }
    }
}

/// Key rows number `keys` of `rows`.
struct Rest<'a> {
    rows: &'a [u8],
    keys: std::ops::Range<usize>,
    ahead: &'a Ahead<'a>,
}

/// Products of a key with `H` queries.
#[derive(Clone, Copy)]
struct Product<'a, V: Vector, const H: usize> {
    queries: &'a [Sums<H>],
    lanes: [V::Lanes; H],
}

impl<V: Vector, const H: usize> Sink<V> for Product<'_, V, H> {
    #[inline(always)]
    unsafe fn take(&mut self, n: usize, x: V::Lanes) {
        debug_assert!(n < self.queries.len());
        // SAFETY: by the trait's contract, and queries have all blocks of the head, as `StoredKeys::new` asserts.
        let queries = unsafe { self.queries.get_unchecked(n) };
        for (lanes, query) in self.lanes.iter_mut().zip(&queries.0) {
            // SAFETY: by the trait's contract.
            *lanes = unsafe { V::mul_add(x, V::load(query), *lanes) };
        }
    }
}

/// Products of one key with all queries.
#[inline(always)]
pub(super) fn put<const H: usize>(products: &mut ByKey<H>, key: usize, of: [f32; H]) {
    for (products, x) in products.iter_mut().zip(of) {
        products[key / LANES][key % LANES] = x;
    }
}
