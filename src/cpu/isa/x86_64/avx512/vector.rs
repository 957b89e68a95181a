//! Vectors of AVX-512 with VBMI2, F16C, BMI2 and FMA: one register each.

use std::arch::x86_64::*;

use crate::cpu::isa::vector::{LANES, Vector};
use crate::cpu::isa::x86_64::avx2::Avx2;
use crate::cpu::isa::x86_64::nibbles::nibbles_to_bytes;
use crate::cpu::isa::x86_64::prefetch::prefetch;

/// Sixteen float32 in a 512-bit register.
#[derive(Clone, Copy)]
pub(in crate::cpu) struct Avx512(Avx2);

impl Avx512 {
    /// If this processor has the instructions.
    pub(in crate::cpu::isa::x86_64) fn detect() -> Option<Self> {
        let available = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512vbmi2");
        Avx2::detect().filter(|_| available).map(Self)
    }

    /// The smaller set.
    #[inline(always)]
    pub(in crate::cpu::isa::x86_64) fn avx2(self) -> Avx2 {
        self.0
    }
}

/// Instructions of AVX-512.
macro_rules! avx512 {
    ($code:expr) => {
        // SAFETY: an `Avx512` proves that the processor has the instructions, and functions without one ask for them;
        // memory is read and written through references to arrays of the size that the instruction takes.
        unsafe { $code }
    };
}

/// float16 as the format reads them: NaN as 0, infinity as the end of the range.
#[inline]
#[target_feature(enable = "avx512f,avx512dq")]
pub(in crate::cpu::isa::x86_64) fn finite_f16(x: __m256i) -> __m512 {
    let x = _mm512_cvtph_ps(x);
    // The lesser magnitude of `x` and the limit, with the sign of `x`. No branch, so that no registers are spilled.
    let number = _mm512_cmp_ps_mask::<_CMP_ORD_Q>(x, x);
    _mm512_maskz_range_ps::<0b0010>(number, x, _mm512_set1_ps(65504.0))
}

/// The same; without `SPECIAL`, NaN and infinity as they are.
///
/// # Safety
/// The processor has the instructions of [`Avx512`].
#[inline(always)]
unsafe fn sixteen_f16<const SPECIAL: bool>(x: __m256i) -> __m512 {
    avx512!(if SPECIAL { finite_f16(x) } else { _mm512_cvtph_ps(x) })
}

/// Functions that put the first elements of a vector in the places where the mask has a bit, and 0 elsewhere, by one
/// instruction that reads a register: the compiler has the intrinsics read memory, which is several times slower.
macro_rules! expand {
    ($name:ident, $instruction:literal, $register:ident, $vector:ty, $mask:ty) => {
        #[inline]
        #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi2,avx2")]
        pub(in crate::cpu::isa::x86_64) fn $name(mask: $mask, x: $vector) -> $vector {
            let expanded;
            // SAFETY: the instruction touches only these registers; the function needs what it takes.
            unsafe {
                std::arch::asm!(
                    concat!($instruction, " {}{{{}}}{{z}}, {}"),
                    out($register) expanded, in(kreg) mask, in($register) x,
                    options(pure, nomem, nostack, preserves_flags),
                );
            }
            expanded
        }
    };
}

expand!(expand_bytes, "vpexpandb", xmm_reg, __m128i, u16);
expand!(expand_words, "vpexpandw", ymm_reg, __m256i, u16);
expand!(expand_all_words, "vpexpandw", zmm_reg, __m512i, u32);

// SAFETY: `detect` alone makes an `Avx512`, where all these instructions are there.
unsafe impl Vector for Avx512 {
    type Lanes = __m512;
    const REGISTERS: usize = 1;

    #[inline(always)]
    fn splat(self, x: f32) -> __m512 {
        avx512!(_mm512_set1_ps(x))
    }
    #[inline(always)]
    fn load(self, x: &[f32; LANES]) -> __m512 {
        avx512!(_mm512_loadu_ps(x.as_ptr()))
    }
    #[inline(always)]
    fn store(self, x: __m512, to: &mut [f32; LANES]) {
        avx512!(_mm512_storeu_ps(to.as_mut_ptr(), x))
    }
    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        avx512!(_mm512_add_ps(a, b))
    }
    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        avx512!(_mm512_mul_ps(a, b))
    }
    #[inline(always)]
    fn mul_add(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        avx512!(_mm512_fmadd_ps(a, b, c))
    }
    #[inline(always)]
    fn max(self, a: __m512, b: __m512) -> __m512 {
        avx512!(_mm512_max_ps(a, b))
    }
    #[inline(always)]
    fn min(self, a: __m512, b: __m512) -> __m512 {
        avx512!(_mm512_min_ps(a, b))
    }
    #[inline(always)]
    fn select(self, mask: u16, yes: __m512, no: __m512) -> __m512 {
        avx512!(_mm512_mask_blend_ps(mask, no, yes))
    }
    #[inline(always)]
    fn negate(self, mask: u16, x: __m512) -> __m512 {
        avx512!(_mm512_mask_sub_ps(x, mask, _mm512_set1_ps(-0.0), x))
    }
    #[inline(always)]
    fn greatest(self, x: __m512) -> f32 {
        avx512!(_mm512_reduce_max_ps(x))
    }
    #[inline(always)]
    fn sums<const N: usize>(self, x: [__m512; N]) -> [f32; N] {
        let mut sums = [0.0; N];
        let (fours, rest) = x.as_chunks::<4>();
        let (to_fours, to_rest) = sums.as_chunks_mut::<4>();
        for (&[a, b, c, d], to) in fours.iter().zip(to_fours) {
            avx512!({
                // Pairs of lanes, then pairs of pairs, each sum in a lane of every quarter.
                let ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
                let cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
                let low = _mm512_shuffle_ps::<0b01_00_01_00>(ab, cd);
                let high = _mm512_shuffle_ps::<0b11_10_11_10>(ab, cd);
                let quarters = _mm512_add_ps(low, high);
                let halves = _mm256_add_ps(_mm512_castps512_ps256(quarters), _mm512_extractf32x8_ps::<1>(quarters));
                let all = _mm_add_ps(_mm256_castps256_ps128(halves), _mm256_extractf128_ps::<1>(halves));
                _mm_storeu_ps(to.as_mut_ptr(), all);
            })
        }
        for (&x, to) in rest.iter().zip(to_rest) {
            *to = avx512!(_mm512_reduce_add_ps(x));
        }
        sums
    }
    #[inline(always)]
    fn exp(self, x: __m512) -> __m512 {
        avx512!({
            // 2^floor(t) * 2^r. One instruction finds r, which is in 0..1, and one multiplies by 2^floor(t); the
            // polynomial is 2^r, but for 1e-7 of it.
            let t = _mm512_mul_ps(x, _mm512_set1_ps(std::f32::consts::LOG2_E));
            let r = _mm512_reduce_ps::<0x09>(t);
            let mut p = _mm512_set1_ps(0.001_867_130_3);
            p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.009_017_03));
            p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.055_799_913));
            p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.240_164_44));
            p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.693_151_3));
            p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0));
            let large = _mm512_cmp_ps_mask::<_CMP_GE_OQ>(x, _mm512_set1_ps(-87.0));
            _mm512_maskz_scalef_ps(large, p, t)
        })
    }
    #[inline(always)]
    fn load_u8(self, bytes: &[u8; LANES]) -> __m512 {
        avx512!(_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(bytes.as_ptr().cast()))))
    }
    #[inline(always)]
    fn load_nibbles(self, bytes: &[u8; LANES]) -> [__m512; 2] {
        avx512!({
            let x = _mm512_cvtepu8_epi32(_mm_loadu_si128(bytes.as_ptr().cast()));
            // A table lookup takes the low four bits of an index only.
            let table =
                _mm512_setr_ps(0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0, 12.0, 13.0, 14.0, 15.0);
            [_mm512_permutexvar_ps(x, table), _mm512_permutexvar_ps(_mm512_srli_epi32::<4>(x), table)]
        })
    }
    #[inline(always)]
    fn load_f16<const SPECIAL: bool>(self, bytes: &[u8; 2 * LANES]) -> __m512 {
        avx512!(sixteen_f16::<SPECIAL>(_mm256_loadu_si256(bytes.as_ptr().cast())))
    }
    #[inline(always)]
    fn expand_u8(self, bytes: &[u8; LANES], mask: u16) -> __m512 {
        avx512!({
            let expanded = expand_bytes(mask, _mm_loadu_si128(bytes.as_ptr().cast()));
            _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(expanded))
        })
    }
    #[inline(always)]
    fn expand_f16<const SPECIAL: bool>(self, bytes: &[u8; 2 * LANES], mask: u16) -> __m512 {
        avx512!(sixteen_f16::<SPECIAL>(expand_words(mask, _mm256_loadu_si256(bytes.as_ptr().cast()))))
    }
    #[inline(always)]
    fn expand_f16_pair<const SPECIAL: bool>(
        self,
        bytes: &[u8; 4 * LANES],
        mask: u32,
        others: [__m512; 2],
    ) -> [__m512; 2] {
        avx512!({
            let words = expand_all_words(mask, _mm512_loadu_si512(bytes.as_ptr().cast()));
            let [low, high] = [_mm512_castsi512_si256(words), _mm512_extracti64x4_epi64::<1>(words)];
            let (low, high) = (sixteen_f16::<SPECIAL>(low), sixteen_f16::<SPECIAL>(high));
            [self.select(mask as u16, low, others[0]), self.select((mask >> 16) as u16, high, others[1])]
        })
    }
    #[inline(always)]
    fn expand_nibbles(self, bytes: &[u8; LANES], skipped: bool, mask: u16) -> __m512 {
        avx512!({
            let [low, high] = nibbles_to_bytes(bytes, skipped);
            let expanded = _mm_maskz_expand_epi8(mask, _mm_set_epi64x(high as i64, low as i64));
            _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(expanded))
        })
    }
    #[inline(always)]
    fn expand_by_codebook(self, codebook: &[u8; 16], bytes: &[u8; LANES], skipped: bool, mask: u16) -> __m512 {
        avx512!({
            let [low, high] = nibbles_to_bytes(bytes, skipped);
            let book = _mm_loadu_si128(codebook.as_ptr().cast());
            let found = _mm_shuffle_epi8(book, _mm_set_epi64x(high as i64, low as i64));
            _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(expand_bytes(mask, found)))
        })
    }
    #[inline(always)]
    fn splat_f16(self, bytes: [u8; 2]) -> __m512 {
        avx512!(sixteen_f16::<true>(_mm256_set1_epi16(i16::from_le_bytes(bytes))))
    }
    #[inline(always)]
    fn eight_f16(self, bytes: &[u8; LANES]) -> [f32; LANES / 2] {
        avx512!({
            let x = sixteen_f16::<true>(_mm256_castsi128_si256(_mm_loadu_si128(bytes.as_ptr().cast())));
            let mut out = [0.0; LANES];
            self.store(x, &mut out);
            *out.first_chunk().expect("half of them")
        })
    }
    #[inline(always)]
    fn prefetch<const FAR: bool>(self, address: *const u8) {
        prefetch::<FAR>(address);
    }
}
