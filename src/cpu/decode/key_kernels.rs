//! Products of a few queries with key rows: by a kernel of the instruction set where it has one, by vectors otherwise.

use std::mem::MaybeUninit;
use std::ops::Range;

use super::chunk::{ByKey, HeadLanes, set_products};
use super::kernels::{KeyKernel, KeyRows};
use super::prefetch::Prefetch;
use crate::cpu::isa::rows::keys::{KeyReader, Sink};
use crate::cpu::isa::rows::planes::{PlaneReader, Queries};
use crate::cpu::isa::traits::{Isa, Work};
use crate::cpu::isa::vector::{LANES, Vector};

/// `H` queries for key rows.
pub(super) struct KeyProducts<'a, I: Isa, const H: usize> {
    isa: I,
    reader: KeyReader<'a>,
    /// Block by block; in units of c where rows are.
    queries: &'a [HeadLanes<H>],
    /// c, block by block.
    scale: &'a [[f32; LANES]],
    kernel: Option<I::Keys<'a, H>>,
    /// Reads rows in planes, if these are and there is no kernel for them.
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
        let kernel = I::Keys::new(isa, rows, queries, scale, &mut scratch.kernel);
        let planes = rows.layout.planes().filter(|_| kernel.is_none()).map(|planes| {
            let scratch = scratch.planes.write([HeadLanes::ZERO; _]);
            PlaneReader::new(*planes, queries, scratch)
        });
        Self { isa, reader: KeyReader::new(rows), queries, scale, kernel, planes }
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
        // Compiled once for all types of the call.
        self.isa.run(Rest { of: self, rows, keys: read..count, prefetch, products });
    }
}

/// Key rows number `keys` of `rows`, left to vectors of any kind.
struct Rest<'s, 'a, I: Isa, const H: usize> {
    of: &'s KeyProducts<'a, I, H>,
    rows: &'s [u8],
    keys: Range<usize>,
    prefetch: &'s Prefetch<'s>,
    products: &'s mut ByKey<H>,
}

impl<I: Isa, const H: usize> Work for Rest<'_, '_, I, H> {
    type Output = ();

    #[inline(always)]
    fn with<J: Isa>(mut self, isa: J) {
        let v = isa.vector();
        if let Some(planes) = &self.of.planes {
            return self.in_planes(v, planes);
        }
        // Infinity and NaN, which are rare, show in the products.
        if !self.with_vectors::<_, false>(v) {
            self.with_vectors::<_, true>(v);
        }
    }
}

impl<I: Isa, const H: usize> Rest<'_, '_, I, H> {
    /// Products of rows in planes.
    #[inline(always)]
    fn in_planes<V: Vector>(&mut self, v: V, planes: &PlaneReader<'_, H>) {
        const TOGETHER: usize = 2;
        let bytes = self.of.reader.layout().row_bytes();
        let mut key = self.keys.start;
        while key + TOGETHER <= self.keys.end {
            let rows: [&[u8]; TOGETHER] = std::array::from_fn(|n| &self.rows[(key + n) * bytes..]);
            for (n, of) in planes.products(v, rows).into_iter().enumerate() {
                set_products(self.products, key + n, of);
            }
            key += TOGETHER;
        }
        for key in key..self.keys.end {
            set_products(self.products, key, planes.products(v, [&self.rows[key * bytes..]])[0]);
        }
    }

    /// Products of other rows. False if some are not finite, as without `SPECIAL` if a row has infinity or NaN.
    #[inline(always)]
    fn with_vectors<V: Vector, const SPECIAL: bool>(&mut self, v: V) -> bool {
        let mut key = self.keys.start;
        // Where a vector takes one register, there are enough for products with two keys.
        if V::REGISTERS == 1 {
            while key + 2 <= self.keys.end {
                self.together::<_, SPECIAL, 2>(v, key);
                key += 2;
            }
        }
        while key < self.keys.end {
            self.together::<_, SPECIAL, 1>(v, key);
            key += 1;
        }
        self.products.as_flattened().iter().all(|products| v.all_finite(&[v.load(products)]))
    }

    /// Of `R` rows from number `key` on.
    #[inline(always)]
    fn together<V: Vector, const SPECIAL: bool, const R: usize>(&mut self, v: V, key: usize) {
        let KeyProducts { reader, queries, scale, .. } = self.of;
        let bytes = reader.layout().row_bytes();
        let rows: [&[u8]; R] = std::array::from_fn(|n| &self.rows[(key + n) * bytes..]);
        let mut sinks = [Product::<V, H> { queries, lanes: [v.splat(0.0); H] }; R];
        reader.read_together::<_, _, SPECIAL, R>(v, rows, scale, &mut sinks);
        self.prefetch.at_key(v, key);
        for (n, sink) in sinks.iter().enumerate() {
            set_products(self.products, key + n, v.sums(sink.lanes));
        }
    }
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::cpu::decode::chunk::{CHUNK, no_products};
    use crate::cpu::isa::InstructionSet;
    use crate::format::{KeyLayout, Planes};

    /// Rows in planes, of which `count` are multiplied with `H` queries, `[H, D]`.
    struct Multiply<'a, const H: usize> {
        layout: &'a KeyLayout,
        rows: &'a [u8],
        count: usize,
        queries: &'a [f32],
    }

    impl<const H: usize> Work for Multiply<'_, H> {
        type Output = Vec<f32>;

        #[inline(always)]
        fn with<I: Isa>(self, isa: I) -> Vec<f32> {
            let Self { layout, rows, count, queries } = self;
            let mut blocks = vec![HeadLanes::<H>::ZERO; layout.head_dim() / LANES];
            for (h, query) in queries.chunks_exact(layout.head_dim()).enumerate() {
                for (block, channels) in blocks.iter_mut().zip(query.as_chunks().0) {
                    block.0[h] = *channels;
                }
            }
            let mut scratch = KeyScratch::<I, H>::new();
            let mut products = no_products::<H>();
            if count == CHUNK {
                // Those of a whole chunk are all set, whatever was there.
                products.as_flattened_mut().as_flattened_mut().fill(7.0);
            }
            let key_rows = KeyRows { layout, recover: false };
            let prefetch = Prefetch::new((rows, layout.row_bytes()), (&[], 4), false);
            let scale = vec![[1.0; LANES]; blocks.len()];
            KeyProducts::new(isa, key_rows, &blocks, &scale, &mut scratch).products(
                rows,
                count,
                &prefetch,
                &mut products,
            );
            products.iter().flat_map(|of_head| of_head.as_flattened()[..count].to_vec()).collect()
        }
    }

    /// Compares every set with the numbers that rows decode to, within what queries of int16 may be off, and with VNNI
    /// those of int8 that directions of 2 bits meet.
    fn check<const H: usize>(work: &Multiply<'_, H>) -> Result<(), TestCaseError> {
        let &Multiply { layout, rows, count, queries } = work;
        let d = layout.head_dim();
        let planes = layout.planes().expect("planes");
        let [eight, four, _] = planes.counts();
        let worth = |j: usize| crate::format::v3::RANGES[usize::from(j >= eight) + usize::from(j >= eight + four)];
        let mut key = vec![0.0; d];
        for set in InstructionSet::ALL.into_iter().filter(|set| set.is_available()) {
            let found = set.run(Multiply::<H> { layout, rows, count, queries });
            for (h, query) in queries.chunks_exact(d).enumerate() {
                let int8_from = if set == InstructionSet::Vnni { eight + four } else { planes.kept() };
                let units =
                    [(0..int8_from, 32_639.0), (int8_from..planes.kept(), 127.0)].map(|(directions, greatest)| {
                        let most = directions.clone().map(|j| query[j].abs() * worth(j)).fold(0.0, f32::max);
                        (directions, most / greatest)
                    });
                for (n, row) in rows.chunks_exact(layout.row_bytes()).take(count).enumerate() {
                    planes.decode(row, &mut key);
                    let products = || query.iter().zip(&key).map(|(q, k)| f64::from(*q) * f64::from(*k));
                    let rounding = |(directions, unit): &(Range<usize>, f32)| {
                        directions.clone().map(|j| (key[j] / worth(j)).abs()).sum::<f32>() * unit * 0.51
                    };
                    let off = f64::from(units.iter().map(rounding).sum::<f32>())
                        + products().map(f64::abs).sum::<f64>() * 1e-5;
                    let (expected, found) = (products().sum::<f64>(), f64::from(found[h * count + n]));
                    let close = (found - expected).abs() <= off;
                    prop_assert!(close, "{}, row {n}, query {h}: {found} is not {expected}", set.name());
                }
            }
        }
        Ok(())
    }

    proptest! {
        /// Any bytes in any planes, rows that end with their memory among them.
        #[test]
        fn planes_are_multiplied_as_they_are_decoded(
            (blocks, eight, four, two) in (2usize..=16).prop_flat_map(|n| {
                (Just(n), 0..=16 * n).prop_flat_map(|(n, eight)| {
                    (Just(n), Just(eight), 0..=16 * n - eight).prop_flat_map(|(n, eight, four)| {
                        (Just(n), Just(eight), Just(four), 0..=16 * n - eight - four)
                    })
                })
            }),
            (padding, count, more) in (0usize..3, (1..=CHUNK + 64).prop_map(|n| n.min(CHUNK)), 0usize..4),
            (seed, heads) in (any::<u64>(), 1usize..=8),
        ) {
            let planes = Planes { eight, four, two: two.max(usize::from(eight + four == 0)) };
            let least = KeyLayout::of_planes(LANES * blocks, planes, 0).unwrap().row_bytes();
            let layout = &KeyLayout::of_planes(LANES * blocks, planes, least + 4 * padding).unwrap();
            let mut state = seed;
            let mut next = || {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (state >> 33) as u32
            };
            let rows: Vec<u8> = (0..(count + more) * layout.row_bytes()).map(|_| next() as u8).collect();
            // Some far greater than others; those that pad a batch are zero.
            let batch = heads.next_power_of_two();
            let mut queries: Vec<f32> = (0..heads * layout.head_dim())
                .map(|n| (next() as f32 / (1u32 << 30) as f32 - 1.0) * if n % 7 == 0 { 30.0 } else { 1.0 })
                .collect();
            queries.resize(batch * layout.head_dim(), 0.0);
            for query in queries.chunks_exact_mut(layout.head_dim()) {
                if next() % 5 == 0 {
                    query.fill(0.0);
                }
            }
            let (rows, queries) = (&rows[..], &queries[..]);
            match batch {
                1 => check::<1>(&Multiply { layout, rows, count, queries })?,
                2 => check::<2>(&Multiply { layout, rows, count, queries })?,
                4 => check::<4>(&Multiply { layout, rows, count, queries })?,
                _ => check::<8>(&Multiply { layout, rows, count, queries })?,
            }
        }
    }
}
