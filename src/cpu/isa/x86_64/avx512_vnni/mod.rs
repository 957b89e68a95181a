//! AVX-512 with VBMI and VNNI beside: quantised rows in fixed point, for a few queries. Codes, queries and weights are
//! integers, and their products are added up in int32, twice as many at once as float32 multiply-adds. Keys in planes
//! are bytes that meet the two halves of an int16 query, or an int8 query in directions of 2 bits.
//!
//! A key channel becomes a multiple of a 32,000th of the greatest magnitude of its row, 125 of which are a step of
//! 8-bit codes and 2,000 one of 4-bit codes; a query channel one of about a 10,000th of the query's greatest; a weight
//! of a value of 8 bits one of a 32,767th of the greatest among its chunk of keys. What that loses is a hundredth of
//! what the rows have lost already.
//!
//! From the codes of values of 4 bits their middle is taken, which is weighed apart, and a weight is a multiple of
//! about a 255th of the greatest among its chunk. Where one key has all the weight, that loses about a quarter of what
//! its codes have lost already, which is a twelfth of their squared error; less where several have.

mod inner_loop;
mod keys;
mod magnitudes;
mod plane_queries;
mod planes;
#[cfg(test)]
mod tests;
mod values;
mod weights;
mod words;

use keys::{I16Keys, KeyScratch};
use planes::PlaneKeys;

use super::avx512::f16_keys::{self, F16Keys};
use super::avx512::{Avx512, compiled};
use super::value_rows::ScaledWeights;
use crate::cpu::decode::chunk::{ByKey, HeadLanes};
use crate::cpu::decode::kernels::{KeyKernel, KeyRows, ValueKernel};
use crate::cpu::decode::prefetch::Prefetch;
use crate::cpu::isa::traits::{Isa, Work};
use crate::cpu::isa::vector::LANES;
use crate::format::v1::layout::{KeyLayout, ValueLayout};

/// Proves that the processor has AVX-512 as [`Avx512`] asks for it, and VBMI and VNNI.
#[derive(Clone, Copy)]
pub(in crate::cpu) struct Avx512Vnni(Avx512);

// SAFETY: `try_new` asks for every instruction set that `run`, the vectors and the kernels use.
unsafe impl Isa for Avx512Vnni {
    type Vector = Avx512;
    type KeyScratch = Scratch;
    type Keys<'a, const H: usize> = Keys<'a, H>;
    type Values<const H: usize> = I16Values;

    fn try_new() -> Option<Self> {
        let available = is_x86_feature_detected!("avx512vbmi") && is_x86_feature_detected!("avx512vnni");
        Avx512::detect().filter(|_| available).map(Self)
    }
    #[inline(always)]
    fn vector(self) -> Avx512 {
        self.0
    }
    fn most_decode_queries(rows: &KeyLayout) -> usize {
        let by_its_kernel = rows.planes().is_some() || rows.bits().is_quantised();
        if by_its_kernel { 64 } else { Avx512::most_decode_queries(rows) }
    }
    #[inline(always)]
    fn run<W: Work>(self, work: W) -> W::Output {
        // SAFETY: `self` proves that the processor has the instructions.
        unsafe { compiled(self, work) }
    }
}

/// Products of `H` queries with key rows: quantised ones in int16, planes in int8, others as AVX-512 alone reads them.
#[expect(clippy::large_enum_variant, reason = "it is made once for a part of a cache, and stays where it is")]
pub(in crate::cpu) enum Keys<'a, const H: usize> {
    I16(I16Keys<'a, H>),
    Planes(PlaneKeys),
    F16(F16Keys<'a, H>),
}

/// Scratch space for one chunk.
#[derive(Default)]
pub(in crate::cpu) struct Scratch {
    i16: KeyScratch,
    f16: f16_keys::Scratch,
}

impl<'a, const H: usize> KeyKernel<'a, H> for Keys<'a, H> {
    type Isa = Avx512Vnni;
    type Scratch = Scratch;

    #[inline(always)]
    fn new(
        isa: Avx512Vnni,
        rows: KeyRows<'a>,
        queries: &'a [HeadLanes<H>],
        scale: &'a [[f32; LANES]],
        scratch: &'a mut Scratch,
    ) -> Option<Self> {
        if rows.layout.planes().is_some() {
            // SAFETY: `isa` proves that the processor has the instructions.
            return unsafe { PlaneKeys::new(isa.0, rows.layout, queries) }.map(Self::Planes);
        }
        // SAFETY: likewise.
        match unsafe { I16Keys::new(isa.0, rows, queries, &mut scratch.i16) } {
            Some(keys) => Some(Self::I16(keys)),
            None => F16Keys::new(isa.0, rows, queries, scale, &mut scratch.f16).map(Self::F16),
        }
    }

    #[inline(always)]
    fn products(&mut self, rows: &[u8], count: usize, prefetch: &Prefetch, products: &mut ByKey<H>) -> usize {
        match self {
            // SAFETY: these keys were made on a processor that has the instructions.
            Self::I16(keys) => match unsafe { keys.products(rows, count, prefetch, products) } {
                true => count,
                false => 0,
            },
            Self::Planes(keys) => {
                // SAFETY: likewise.
                unsafe { keys.products(rows, count, prefetch, products) };
                count
            }
            Self::F16(keys) => keys.products(rows, count, prefetch, products),
        }
    }
}

/// Weighted sums of quantised value rows in int16.
pub(in crate::cpu) struct I16Values(Avx512Vnni);

impl<const H: usize> ValueKernel<H> for I16Values {
    type Isa = Avx512Vnni;
    type Scratch = ScaledWeights<H>;

    #[inline(always)]
    fn new(isa: Avx512Vnni, layout: &ValueLayout) -> Option<Self> {
        values::takes(layout).then_some(Self(isa))
    }

    #[inline(always)]
    fn add_rows(
        &self,
        layout: &ValueLayout,
        rows: (&[u8], usize),
        prefetch: &Prefetch,
        weights: (&ByKey<H>, usize),
        scratch: &mut ScaledWeights<H>,
        sums: &mut [HeadLanes<H>],
    ) {
        // SAFETY: `self` proves that the processor has the instructions.
        unsafe { values::add_rows(self.0.0, layout, rows, prefetch, weights, scratch, sums) }
    }
}
