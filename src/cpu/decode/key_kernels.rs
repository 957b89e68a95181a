//! Products of a few queries with key rows: by a kernel of the instruction set where it has one, by vectors otherwise.

use std::mem::MaybeUninit;

use super::chunk::{ByKey, HeadLanes, set_products};
use super::kernels::{KeyKernel, KeyRows};
use super::prefetch::Prefetch;
use crate::cpu::isa::rows::keys::{KeyReader, Sink};
use crate::cpu::isa::rows::planes::{PlaneReader, Queries};
use crate::cpu::isa::traits::Isa;
use crate::cpu::isa::vector::{LANES, Vector};

/// `H` queries for key rows.
pub(super) struct KeyProducts<'a, I: Isa, const H: usize> {
    v: I::Vector,
    reader: KeyReader<'a>,
    /// Block by block; in units of c where rows are.
    queries: &'a [HeadLanes<H>],
    /// c, block by block.
    scale: &'a [[f32; LANES]],
    kernel: Option<I::Keys<'a, H>>,
    /// Reads rows in planes, if these are.
    planes: Option<PlaneReader<'a, H>>,
}

/// Scratch space for one batch of queries, on the driver's stack.
pub(super) struct KeyScratch<I: Isa, const H: usize> {
    kernel: I::KeyScratch,
    planes: MaybeUninit<Queries<H>>,
}

impl<I: Isa, const H: usize> KeyScratch<I, H> {
    #[inline(always)]
    pub(super) fn new() -> Self {
        Self { kernel: I::KeyScratch::default(), planes: MaybeUninit::uninit() }
    }
}

impl<'a, I: Isa, const H: usize> KeyProducts<'a, I, H> {
    /// For `queries`, in units of c where rows are, and channel scale c, block by block.
    #[inline(always)]
    pub(super) fn new(
        isa: I,
        rows: KeyRows<'a>,
        queries: &'a [HeadLanes<H>],
        scale: &'a [[f32; LANES]],
        scratch: &'a mut KeyScratch<I, H>,
    ) -> Self {
        assert_eq!(queries.len() * LANES, rows.layout.head_dim(), "queries have all blocks of the head");
        let (kernel, planes) = match rows.layout.planes() {
            Some(planes) => {
                let scratch = scratch.planes.write([HeadLanes::ZERO; _]);
                (None, Some(PlaneReader::new(*planes, queries, scratch)))
            }
            None => (I::Keys::new(isa, rows, queries, scale, &mut scratch.kernel), None),
        };
        Self { v: isa.vector(), reader: KeyReader::new(rows), queries, scale, kernel, planes }
    }

    /// Puts the products of the `count` first of `rows` into `products`.
    #[inline(always)]
    pub(super) fn products(&mut self, rows: &[u8], count: usize, prefetch: &Prefetch, products: &mut ByKey<H>) {
        let read = match &mut self.kernel {
            Some(kernel) => kernel.products(rows, count, prefetch, products),
            None => 0,
        };
        if read == count {
            return;
        }
        let rest = Rest { rows, keys: read..count, prefetch };
        if let Some(planes) = &self.planes {
            return self.of_planes(planes, &rest, products);
        }
        // Infinity and NaN, which are rare, show in the products.
        if !self.with_vectors::<false>(&rest, products) {
            self.with_vectors::<true>(&rest, products);
        }
    }

    /// Products of rows in planes.
    #[inline(always)]
    fn of_planes(&self, planes: &PlaneReader<'_, H>, rest: &Rest, products: &mut ByKey<H>) {
        const TOGETHER: usize = 2;
        let bytes = self.reader.layout().row_bytes();
        let mut key = rest.keys.start;
        while key + TOGETHER <= rest.keys.end {
            let rows: [&[u8]; TOGETHER] = std::array::from_fn(|n| &rest.rows[(key + n) * bytes..]);
            for (n, of) in planes.products(self.v, rows).into_iter().enumerate() {
                rest.prefetch.at_key(self.v, key + n);
                set_products(products, key + n, of);
            }
            key += TOGETHER;
        }
        for key in key..rest.keys.end {
            rest.prefetch.at_key(self.v, key);
            set_products(products, key, planes.products(self.v, [&rest.rows[key * bytes..]])[0]);
        }
    }

    /// Products of the rows left over, with vectors of any kind. False if some are not finite, as without `SPECIAL` if
    /// a row has infinity or NaN.
    #[inline(always)]
    fn with_vectors<const SPECIAL: bool>(&self, rest: &Rest, products: &mut ByKey<H>) -> bool {
        let mut key = rest.keys.start;
        // Where a vector takes one register, there are enough for products with two keys.
        if <I::Vector as Vector>::REGISTERS == 1 {
            while key + 2 <= rest.keys.end {
                self.together::<SPECIAL, 2>(rest, key, products);
                key += 2;
            }
        }
        while key < rest.keys.end {
            self.together::<SPECIAL, 1>(rest, key, products);
            key += 1;
        }
        products.as_flattened().iter().all(|products| self.v.all_finite(&[self.v.load(products)]))
    }

    /// Of `R` rows from number `key` on.
    #[inline(always)]
    fn together<const SPECIAL: bool, const R: usize>(&self, rest: &Rest, key: usize, products: &mut ByKey<H>) {
        let (v, bytes) = (self.v, self.reader.layout().row_bytes());
        let rows: [&[u8]; R] = std::array::from_fn(|n| &rest.rows[(key + n) * bytes..]);
        let mut sinks = [Product::<I::Vector, H> { queries: self.queries, lanes: [v.splat(0.0); H] }; R];
        self.reader.read_together::<_, _, SPECIAL, R>(v, rows, self.scale, &mut sinks);
        for (n, sink) in sinks.iter().enumerate() {
            rest.prefetch.at_key(v, key + n);
            set_products(products, key + n, v.sums(sink.lanes));
        }
    }
}

/// Key rows number `keys` of `rows`.
struct Rest<'a> {
    rows: &'a [u8],
    keys: std::ops::Range<usize>,
    prefetch: &'a Prefetch<'a>,
}

/// Products of a key with `H` queries.
#[derive(Clone, Copy)]
struct Product<'a, V: Vector, const H: usize> {
    queries: &'a [HeadLanes<H>],
    lanes: [V::Lanes; H],
}

impl<V: Vector, const H: usize> Sink<V> for Product<'_, V, H> {
    /// # Safety
    /// The head has a block `n`.
    #[inline(always)]
    unsafe fn take(&mut self, v: V, n: usize, x: V::Lanes) {
        debug_assert!(n < self.queries.len());
        // SAFETY: the head has block `n`, and `KeyProducts::new` asserts that queries have all blocks of the head.
        let queries = unsafe { self.queries.get_unchecked(n) };
        for (lanes, query) in self.lanes.iter_mut().zip(&queries.0) {
            *lanes = v.mul_add(x, v.load(query), *lanes);
        }
    }
}
