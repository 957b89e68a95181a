//! AVX-512 with BW, DQ, VL and VBMI2, and F16C, BMI2 and FMA: float16 rows with registers of 512 bits, quantised ones
//! as AVX2 reads them.

pub(super) mod f16_keys;
pub(super) mod reduce;
pub(super) mod vector;

use f16_keys::F16Keys;
pub(in crate::cpu) use vector::Avx512;

use super::avx2::i16_keys::{self, I16Keys};
use super::avx2::i16_values;
use super::avx2::planes::PlaneKeys;
use super::value_rows::ScaledWeights;
use crate::cpu::decode::chunk::{ByKey, HeadLanes};
use crate::cpu::decode::kernels::{KeyKernel, KeyRows, ValueKernel};
use crate::cpu::decode::prefetch::Prefetch;
use crate::cpu::isa::traits::{Isa, Work};
use crate::cpu::isa::vector::LANES;
use crate::format::v1::layout::ValueLayout;

/// Does `work`, compiled for AVX-512 as far as it is `inline(always)`.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi2,f16c,bmi2,popcnt,fma,avx2")]
pub(super) fn compiled<I: Isa, W: Work>(isa: I, work: W) -> W::Output {
    work.with(isa)
}

// SAFETY: `Avx512::detect` asks for every instruction set that `run`, the vectors and the kernels use.
unsafe impl Isa for Avx512 {
    type Vector = Self;
    type KeyScratch = Scratch;
    type Keys<'a, const H: usize> = Keys<'a, H>;
    type Values<const H: usize> = I16Values;

    fn try_new() -> Option<Self> {
        Self::detect()
    }
    #[inline(always)]
    fn vector(self) -> Self {
        self
    }
    #[inline(always)]
    fn run<W: Work>(self, work: W) -> W::Output {
        // SAFETY: `self` proves that the processor has the instructions.
        unsafe { compiled(self, work) }
    }
}

/// Products of `H` queries with key rows.
pub(in crate::cpu) enum Keys<'a, const H: usize> {
    I16(I16Keys<'a, H>),
    Planes(PlaneKeys<H>),
    F16(F16Keys<'a, H>),
}

/// Scratch space for one chunk.
#[derive(Default)]
pub(in crate::cpu) struct Scratch {
    i16: i16_keys::Scratch,
    f16: f16_keys::Scratch,
}

impl<'a, const H: usize> KeyKernel<'a, H> for Keys<'a, H> {
    type Isa = Avx512;
    type Scratch = Scratch;

    #[inline(always)]
    fn new(
        isa: Avx512,
        rows: KeyRows<'a>,
        queries: &'a [HeadLanes<H>],
        scale: &'a [[f32; LANES]],
        scratch: &'a mut Scratch,
    ) -> Option<Self> {
        if rows.layout.planes().is_some() {
            // SAFETY: `isa` proves that the processor has the instructions.
            return unsafe { PlaneKeys::new(isa.avx2(), rows.layout, queries) }.map(Self::Planes);
        }
        // SAFETY: likewise.
        match unsafe { I16Keys::of(isa.avx2(), rows, queries, &mut scratch.i16) } {
            Some(keys) => Some(Self::I16(keys)),
            None => F16Keys::new(isa, rows, queries, scale, &mut scratch.f16).map(Self::F16),
        }
    }

    #[inline(always)]
    fn products(&mut self, rows: &[u8], count: usize, prefetch: &Prefetch, products: &mut ByKey<H>) -> usize {
        match self {
            // SAFETY: these keys were made on a processor that has the instructions.
            Self::I16(keys) => unsafe { keys.multiply(rows, count, prefetch, products) },
            Self::Planes(keys) => {
                // SAFETY: likewise.
                unsafe { keys.multiply(rows, count, prefetch, products) };
                count
            }
            Self::F16(keys) => keys.products(rows, count, prefetch, products),
        }
    }
}

/// Weighted sums of quantised value rows in int16.
pub(in crate::cpu) struct I16Values(Avx512);

impl<const H: usize> ValueKernel<H> for I16Values {
    type Isa = Avx512;
    type Scratch = ScaledWeights<H>;

    #[inline(always)]
    fn new(isa: Avx512, layout: &ValueLayout) -> Option<Self> {
        layout.bits().is_quantised().then_some(Self(isa))
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
        unsafe { i16_values::add_rows(self.0.avx2(), layout, rows, prefetch, weights, scratch, sums) }
    }
}
