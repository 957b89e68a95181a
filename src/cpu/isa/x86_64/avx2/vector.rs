//! Vectors of AVX2 with FMA, F16C and BMI2: two registers each.

use std::arch::x86_64::*;

use super::dot::Vnni;
use super::expand::expand_eight_words;
use crate::cpu::isa::vector::{LANES, Vector};
use crate::cpu::isa::x86_64::nibbles::nibbles_to_bytes;
use crate::cpu::isa::x86_64::prefetch::prefetch;

/// Sixteen float32 in two 256-bit registers. The kernels of int16 also ask whether the processor has AVX-VNNI.
#[derive(Clone, Copy)]
pub(in crate::cpu) struct Avx2 {
    vnni: Option<Vnni>,
}

impl Avx2 {
    /// If this processor has the instructions.
    pub(in crate::cpu::isa::x86_64) fn detect() -> Option<Self> {
        let available = is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c")
            && is_x86_feature_detected!("bmi2")
            && is_x86_feature_detected!("popcnt");
        available.then_some(Self { vnni: None })
    }

    /// If this processor has AVX-VNNI too: the same vectors, and kernels that use it.
    pub(in crate::cpu) fn detect_vnni() -> Option<Self> {
        let vnni = Vnni::detect()?;
        Self::detect().map(|avx2| avx2.with_vnni(vnni))
    }

    /// The same vectors, and kernels that use AVX-VNNI.
    pub(super) fn with_vnni(mut self, vnni: Vnni) -> Self {
        self.vnni = Some(vnni);
        self
    }

    /// What the kernels are to add products up by, if not by AVX2.
    #[inline(always)]
    pub(super) fn vnni(self) -> Option<Vnni> {
        self.vnni
    }
}

type Lanes = [__m256; 2];

/// Instructions of AVX2 and its companions.
macro_rules! avx2 {
    ($code:expr) => {
        // SAFETY: an `Avx2` proves that the processor has the instructions, and functions without one ask for them;
        // memory is read and written through references to arrays of the size that the instruction takes.
        unsafe { $code }
    };
}

/// All bits of lane i where `mask` has bit i.
///
/// # Safety
/// The processor has the instructions of [`Avx2`].
#[inline(always)]
unsafe fn half_mask(mask: u16) -> __m256 {
    avx2!({
        let bits = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
        let has = _mm256_and_si256(_mm256_set1_epi32(mask.into()), bits);
        _mm256_castsi256_ps(_mm256_cmpeq_epi32(has, bits))
    })
}

/// All bits of the lanes where `mask` has a bit.
///
/// # Safety
/// The processor has the instructions of [`Avx2`].
#[inline(always)]
unsafe fn lanes_of(mask: u16) -> Lanes {
    avx2!([half_mask(mask & 0xff), half_mask(mask >> 8)])
}

/// Eight float16 as numbers within their range; without `SPECIAL`, infinity and NaN as they are.
///
/// # Safety
/// The processor has the instructions of [`Avx2`].
#[inline(always)]
pub(super) unsafe fn eight_f16<const SPECIAL: bool>(x: __m128i) -> __m256 {
    avx2!({
        let x = _mm256_cvtph_ps(x);
        if !SPECIAL {
            return x;
        }
        let limit = _mm256_set1_ps(65504.0);
        let number = _mm256_cmp_ps::<_CMP_ORD_Q>(x, x);
        let limited = _mm256_min_ps(_mm256_max_ps(x, _mm256_sub_ps(_mm256_setzero_ps(), limit)), limit);
        _mm256_and_ps(number, limited)
    })
}

/// Sixteen float16 as numbers; without `SPECIAL`, infinity and NaN as they are.
///
/// # Safety
/// The processor has the instructions of [`Avx2`].
#[inline(always)]
unsafe fn sixteen_f16<const SPECIAL: bool>(bytes: &[u8; 2 * LANES]) -> Lanes {
    let (two, _) = bytes.as_chunks::<LANES>();
    avx2!([
        eight_f16::<SPECIAL>(_mm_loadu_si128(two[0].as_ptr().cast())),
        eight_f16::<SPECIAL>(_mm_loadu_si128(two[1].as_ptr().cast())),
    ])
}

/// 2^n * e^r as in the portable vectors.
///
/// # Safety
/// The processor has the instructions of [`Avx2`].
#[inline(always)]
unsafe fn eight_exp(x: __m256) -> __m256 {
    avx2!({
        let n = _mm256_round_ps::<0x08>(_mm256_mul_ps(x, _mm256_set1_ps(std::f32::consts::LOG2_E)));
        let r = _mm256_fnmadd_ps(n, _mm256_set1_ps(0.693_359_4), x);
        let r = _mm256_fmadd_ps(n, _mm256_set1_ps(2.121_944_4e-4), r);
        let mut p = _mm256_set1_ps(1.0 / 720.0);
        for c in [1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
            p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(c));
        }
        let exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
        let power = _mm256_castsi256_ps(_mm256_slli_epi32::<23>(exponent));
        let large = _mm256_cmp_ps::<_CMP_GE_OQ>(x, _mm256_set1_ps(-87.0));
        _mm256_and_ps(large, _mm256_mul_ps(p, power))
    })
}

/// Eight bytes as numbers.
///
/// # Safety
/// The processor has the instructions of [`Avx2`].
#[inline(always)]
unsafe fn numbers(bytes: u64) -> __m256 {
    avx2!(_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_cvtsi64_si128(bytes as i64))))
}

/// A bit of each byte from each bit of `mask`, then the byte all ones.
///
/// # Safety
/// The processor has the instructions of [`Avx2`].
#[inline(always)]
unsafe fn bytes_of(mask: u8) -> u64 {
    avx2!(_pdep_u64(mask.into(), 0x0101_0101_0101_0101)) * 0xff
}

// SAFETY: `detect` alone makes an `Avx2`, where all these instructions are there.
unsafe impl Vector for Avx2 {
    type Lanes = Lanes;
    const REGISTERS: usize = 2;

    #[inline(always)]
    fn splat(self, x: f32) -> Lanes {
        avx2!([_mm256_set1_ps(x); 2])
    }
    #[inline(always)]
    fn load(self, x: &[f32; LANES]) -> Lanes {
        avx2!([_mm256_loadu_ps(x.as_ptr()), _mm256_loadu_ps(x[8..].as_ptr())])
    }
    #[inline(always)]
    fn store(self, x: Lanes, to: &mut [f32; LANES]) {
        avx2!({
            _mm256_storeu_ps(to.as_mut_ptr(), x[0]);
            _mm256_storeu_ps(to[8..].as_mut_ptr(), x[1]);
        })
    }
    #[inline(always)]
    fn add(self, a: Lanes, b: Lanes) -> Lanes {
        avx2!([_mm256_add_ps(a[0], b[0]), _mm256_add_ps(a[1], b[1])])
    }
    #[inline(always)]
    fn mul(self, a: Lanes, b: Lanes) -> Lanes {
        avx2!([_mm256_mul_ps(a[0], b[0]), _mm256_mul_ps(a[1], b[1])])
    }
    #[inline(always)]
    fn mul_add(self, a: Lanes, b: Lanes, c: Lanes) -> Lanes {
        avx2!([_mm256_fmadd_ps(a[0], b[0], c[0]), _mm256_fmadd_ps(a[1], b[1], c[1])])
    }
    #[inline(always)]
    fn max(self, a: Lanes, b: Lanes) -> Lanes {
        avx2!([_mm256_max_ps(a[0], b[0]), _mm256_max_ps(a[1], b[1])])
    }
    #[inline(always)]
    fn min(self, a: Lanes, b: Lanes) -> Lanes {
        avx2!([_mm256_min_ps(a[0], b[0]), _mm256_min_ps(a[1], b[1])])
    }
    #[inline(always)]
    fn select(self, mask: u16, yes: Lanes, no: Lanes) -> Lanes {
        avx2!({
            let mask = lanes_of(mask);
            [_mm256_blendv_ps(no[0], yes[0], mask[0]), _mm256_blendv_ps(no[1], yes[1], mask[1])]
        })
    }
    #[inline(always)]
    fn negate(self, mask: u16, x: Lanes) -> Lanes {
        avx2!({
            let sign = _mm256_set1_ps(-0.0);
            let mask = lanes_of(mask);
            [_mm256_xor_ps(x[0], _mm256_and_ps(mask[0], sign)), _mm256_xor_ps(x[1], _mm256_and_ps(mask[1], sign))]
        })
    }
    #[inline(always)]
    fn greatest(self, x: Lanes) -> f32 {
        avx2!({
            let eight = _mm256_max_ps(x[0], x[1]);
            let four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
            let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)))
        })
    }
    #[inline(always)]
    fn sums<const N: usize>(self, x: [Lanes; N]) -> [f32; N] {
        let mut sums = [0.0; N];
        for n in 0..N {
            sums[n] = avx2!({
                let eight = _mm256_add_ps(x[n][0], x[n][1]);
                let four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
                let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
                _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
            });
        }
        sums
    }
    #[inline(always)]
    fn exp(self, x: Lanes) -> Lanes {
        avx2!([eight_exp(x[0]), eight_exp(x[1])])
    }
    #[inline(always)]
    fn load_u8(self, bytes: &[u8; LANES]) -> Lanes {
        let (halves, _) = bytes.as_chunks::<8>();
        avx2!([numbers(u64::from_le_bytes(halves[0])), numbers(u64::from_le_bytes(halves[1]))])
    }
    #[inline(always)]
    fn load_nibbles(self, bytes: &[u8; LANES]) -> [Lanes; 2] {
        let x = u128::from_le_bytes(*bytes);
        let low = u128::from_le_bytes([15; LANES]);
        [self.load_u8(&(x & low).to_le_bytes()), self.load_u8(&((x >> 4) & low).to_le_bytes())]
    }
    #[inline(always)]
    fn load_f16<const SPECIAL: bool>(self, bytes: &[u8; 2 * LANES]) -> Lanes {
        avx2!(sixteen_f16::<SPECIAL>(bytes))
    }
    #[inline(always)]
    fn expand_u8(self, bytes: &[u8; LANES], mask: u16) -> Lanes {
        let [low, high] = mask.to_le_bytes();
        let codes = u128::from_le_bytes(*bytes);
        let rest = (codes >> (8 * low.count_ones())) as u64;
        avx2!([numbers(_pdep_u64(codes as u64, bytes_of(low))), numbers(_pdep_u64(rest, bytes_of(high)))])
    }
    #[inline(always)]
    fn expand_f16<const SPECIAL: bool>(self, bytes: &[u8; 2 * LANES], mask: u16) -> Lanes {
        let [low, high] = mask.to_le_bytes();
        let used = 2 * low.count_ones() as usize;
        let (first, second): (&[u8; LANES], &[u8; LANES]) =
            (bytes.first_chunk().expect("half of them"), bytes[used..].first_chunk().expect("at most half are used"));
        avx2!([
            eight_f16::<SPECIAL>(expand_eight_words(low, first)),
            eight_f16::<SPECIAL>(expand_eight_words(high, second)),
        ])
    }
    #[inline(always)]
    fn expand_nibbles(self, bytes: &[u8; LANES], skipped: bool, mask: u16) -> Lanes {
        let [low, high] = avx2!(nibbles_to_bytes(bytes, skipped));
        self.expand_u8(&(u128::from(high) << 64 | u128::from(low)).to_le_bytes(), mask)
    }
    #[inline(always)]
    fn expand_by_codebook(self, codebook: &[u8; 16], bytes: &[u8; LANES], skipped: bool, mask: u16) -> Lanes {
        let mut entries = [0; LANES];
        avx2!({
            let [low, high] = nibbles_to_bytes(bytes, skipped);
            let book = _mm_loadu_si128(codebook.as_ptr().cast());
            let found = _mm_shuffle_epi8(book, _mm_set_epi64x(high as i64, low as i64));
            _mm_storeu_si128(entries.as_mut_ptr().cast(), found);
        });
        self.expand_u8(&entries, mask)
    }
    #[inline(always)]
    fn splat_f16(self, bytes: [u8; 2]) -> Lanes {
        avx2!([eight_f16::<true>(_mm_set1_epi16(i16::from_le_bytes(bytes))); 2])
    }
    #[inline(always)]
    fn eight_f16(self, bytes: &[u8; LANES]) -> [f32; LANES / 2] {
        let mut out = [0.0; LANES / 2];
        avx2!(_mm256_storeu_ps(out.as_mut_ptr(), eight_f16::<true>(_mm_loadu_si128(bytes.as_ptr().cast()))));
        out
    }
    #[inline(always)]
    fn prefetch<const FAR: bool>(self, address: *const u8) {
        prefetch::<FAR>(address);
    }
}
