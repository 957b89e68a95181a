//! AVX2 with FMA, F16C, BMI2 and POPCNT: quantised rows in int16 fixed point, as AVX-512 VNNI reads them, and rows of
//! float16 in float32, with the registers of AVX2. With AVX-VNNI beside, one instruction multiplies and adds where AVX2
//! takes two: the kernels of int16 are there twice, and everything else serves both.

mod dot;
#[cfg(all(test, target_os = "linux"))]
mod emulation;
mod expand;
mod f16_keys;
mod f16_values;
pub(super) mod i16_keys;
pub(super) mod i16_values;
mod magnitudes;
pub(super) mod planes;
mod reduce;
#[cfg(all(test, target_os = "linux"))]
mod tests;
pub(super) mod vector;
mod weights;

use f16_keys::F16Keys;
use i16_keys::I16Keys;
use planes::PlaneKeys;
pub(in crate::cpu) use vector::Avx2;

use super::value_rows::ScaledWeights;
use crate::cpu::decode::chunk::{ByKey, HeadLanes};
use crate::cpu::decode::kernels::{KeyKernel, KeyRows, ValueKernel};
use crate::cpu::decode::prefetch::Prefetch;
use crate::cpu::isa::traits::{Isa, Work};
use crate::cpu::isa::vector::LANES;
use crate::format::v1::layout::ValueLayout;

// SAFETY: `Avx2::detect` asks for every instruction set that `run`, the vectors and the kernels use.
unsafe impl Isa for Avx2 {
    type Vector = Self;
    type KeyScratch = i16_keys::Scratch;
    type Keys<'a, const H: usize> = Keys<'a, H>;
    type Values<const H: usize> = Values;

    fn try_new() -> Option<Self> {
        Self::detect()
    }
    #[inline(always)]
    fn vector(self) -> Self {
        self
    }
    #[inline(always)]
    fn run<W: Work>(self, work: W) -> W::Output {
        #[target_feature(enable = "avx2,fma,f16c,bmi2,popcnt")]
        fn inner<W: Work>(isa: Avx2, work: W) -> W::Output {
            work.with(isa)
        }
        // SAFETY: `self` proves that the processor has the instructions.
        unsafe { inner(self, work) }
    }
}

/// Products of `H` queries with key rows.
pub(in crate::cpu) enum Keys<'a, const H: usize> {
    I16(I16Keys<'a, H>),
    Planes(PlaneKeys<H>),
    F16(F16Keys<'a, H>),
}

impl<'a, const H: usize> KeyKernel<'a, H> for Keys<'a, H> {
    type Isa = Avx2;
    type Scratch = i16_keys::Scratch;

    #[inline(always)]
    fn new(
        isa: Avx2,
        rows: KeyRows<'a>,
        queries: &'a [HeadLanes<H>],
        scale: &'a [[f32; LANES]],
        scratch: &'a mut i16_keys::Scratch,
    ) -> Option<Self> {
        if rows.layout.planes().is_some() {
            // SAFETY: `isa` proves that the processor has the instructions.
            return unsafe { PlaneKeys::new(isa, rows.layout, queries) }.map(Self::Planes);
        }
        // SAFETY: likewise.
        match unsafe { I16Keys::of(isa, rows, queries, scratch) } {
            Some(keys) => Some(Self::I16(keys)),
            None => F16Keys::of(isa, rows, queries, scale).map(Self::F16),
        }
    }

    #[inline(always)]
    fn products(&mut self, rows: &[u8], count: usize, prefetch: &Prefetch, products: &mut ByKey<H>) -> usize {
        // SAFETY: these keys were made on a processor that has the instructions.
        unsafe {
            match self {
                Self::I16(keys) => keys.multiply(rows, count, prefetch, products),
                Self::Planes(keys) => {
                    keys.multiply(rows, count, prefetch, products);
                    count
                }
                Self::F16(keys) => keys.multiply(rows, count, prefetch, products),
            }
        }
    }
}

/// Weighted sums of value rows.
pub(in crate::cpu) struct Values(Avx2);

impl<const H: usize> ValueKernel<H> for Values {
    type Isa = Avx2;
    type Scratch = ScaledWeights<H>;

    #[inline(always)]
    fn new(isa: Avx2, _: &ValueLayout) -> Option<Self> {
        Some(Self(isa))
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
        unsafe {
            match layout.bits().is_quantised() {
                true => i16_values::add_rows(self.0, layout, rows, prefetch, weights, scratch, sums),
                false => f16_values::add_rows(self.0, layout, rows, prefetch, weights.0, sums),
            }
        }
    }
}
