//! AVX-512 with BW, DQ, VL and VBMI2, and F16C, BMI2 and FMA: float16 key rows with registers of 512 bits.

pub(super) mod f16_keys;
pub(super) mod reduce;
pub(super) mod vector;

use f16_keys::F16Keys;
pub(in crate::cpu) use vector::Avx512;

use crate::cpu::decode::kernels::NoKernel;
use crate::cpu::isa::traits::{Isa, Work};

/// Does `work`, compiled for AVX-512 as far as it is `inline(always)`.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi2,f16c,bmi2,popcnt,fma,avx2")]
pub(super) fn compiled<I: Isa, W: Work>(isa: I, work: W) -> W::Output {
    work.with(isa)
}

// SAFETY: `Avx512::detect` asks for every instruction set that `run`, the vectors and the kernel use.
unsafe impl Isa for Avx512 {
    type Vector = Self;
    type KeyScratch = f16_keys::Scratch;
    type Keys<'a, const H: usize> = F16Keys<'a, H>;
    type Values<const H: usize> = NoKernel<Self>;

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
