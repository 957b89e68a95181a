//! Magnitudes of kept key channels in int16, one after the other as their codes are stored.

use std::arch::asm;
use std::arch::x86_64::*;

use super::reduce::{ROWS, first_two_words, halves};
use super::vector::eight_f16;
use crate::cpu::isa::x86_64::fixed_point::GREATEST_MAGNITUDE;
use crate::format::v1::layout::{Bits, KeyLayout, MAX_HEAD_DIM};

/// Kept channels of one vector of words.
const CHANNELS: usize = 16;

/// Codes of a byte each.
pub(super) const BYTES: u8 = 0;
/// Codes of a nibble each that stand for a byte of a codebook.
pub(super) const NIBBLES: u8 = 1;

/// The codebook of codes that are linear: in 255ths too.
const LINEAR: [u8; 16] = {
    let mut book = [0; 16];
    let mut code = 0;
    while code < 16 {
        book[code] = 17 * code as u8;
        code += 1;
    }
    book
};

/// What the magnitudes of a row's kept channels are more than its recovery magnitude. From any of them on, eight words
/// can be read.
#[repr(C, align(32))]
pub(super) struct Magnitudes([u16; MAX_HEAD_DIM + CHANNELS]);

impl Magnitudes {
    #[inline(always)]
    pub(super) const fn zeroed() -> Self {
        Self([0; MAX_HEAD_DIM + CHANNELS])
    }

    #[inline(always)]
    pub(super) fn as_ptr(&self) -> *const u16 {
        self.0.as_ptr()
    }
}

/// What the magnitudes of eight rows are made of, in units of each row.
pub(super) struct Scalars {
    /// Recovery, what least is more than that, step: words, twice each.
    words: [[i32; ROWS]; 3],
    /// What 1 stands for in each row.
    pub(super) units: __m256,
}

impl Scalars {
    /// From those float16 scalars that begin at each of `rows`: recovery, which reads as 0 unless `recover`, least and
    /// step. `None` if one is negative, as no encoder writes it.
    ///
    /// # Safety
    /// 8 bytes can be read from each of `rows` on.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c,bmi2,popcnt")]
    pub(super) unsafe fn read(layout: &KeyLayout, recover: bool, rows: [*const u8; ROWS]) -> Option<Self> {
        // SAFETY: by this function's contract; the function needs what the conversions take.
        let [recovery, least, step] = unsafe {
            let [recovery_least, step] = first_two_words(rows);
            let ([recovery, least], [step, _]) = (halves(recovery_least), halves(step));
            [recovery, least, step].map(|x| eight_f16::<true>(x))
        };
        let zero = _mm256_setzero_ps();
        let recovery = if recover { recovery } else { zero };
        let negative = _mm256_cmp_ps::<_CMP_LT_OQ>(_mm256_min_ps(_mm256_min_ps(recovery, least), step), zero);
        if _mm256_movemask_ps(negative) != 0 {
            return None;
        }
        // Steps from the least to the greatest magnitude, and 255ths of them that a step is.
        let (levels, per_step) = match (layout.bits(), layout.codebook()) {
            (Bits::B4, None) => (15.0, 17.0),
            _ => (255.0, 1.0),
        };
        let most = _mm256_max_ps(_mm256_fmadd_ps(step, _mm256_set1_ps(levels), least), recovery);
        let some = _mm256_cmp_ps::<_CMP_GT_OQ>(most, zero);
        let by = _mm256_and_ps(some, _mm256_div_ps(_mm256_set1_ps(GREATEST_MAGNITUDE), most));
        // Of a product with a code, which stands twice in a word, the high half is taken.
        let per_code = _mm256_set1_ps(65_536.0 / (257.0 * per_step));
        // A word stands for half a unit more: products with codes are cut off, and so is this.
        let recovery = _mm256_cvttps_epi32(_mm256_mul_ps(recovery, by));
        let least = _mm256_cvtps_epi32(_mm256_mul_ps(least, by));
        let whole = [
            recovery,
            _mm256_sub_epi32(least, recovery),
            _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_mul_ps(step, by), per_code)),
        ];
        let mut words = [[0; ROWS]; 3];
        for (words, x) in words.iter_mut().zip(whole) {
            let twice = _mm256_blend_epi16::<0b1010_1010>(x, _mm256_slli_epi32::<16>(x));
            // SAFETY: memory is written through a reference to an array of the size that the instruction takes.
            unsafe { _mm256_storeu_si256(words.as_mut_ptr().cast(), twice) };
        }
        Some(Self { words, units: _mm256_mul_ps(most, _mm256_set1_ps(1.0 / GREATEST_MAGNITUDE)) })
    }

    /// The recovery magnitude of row `n`, in every word.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub(super) fn recovery(&self, n: usize) -> __m256i {
        _mm256_set1_epi32(self.words[0][n])
    }
}

/// Reads the codes of key rows.
pub(super) struct MagnitudeReader<const CODES: u8> {
    kept: usize,
    /// The codebook, in either half; nothing where there is none.
    codebook: __m256i,
    /// Where each word has its code from, twice.
    places: __m256i,
}

impl<const CODES: u8> MagnitudeReader<CODES> {
    #[inline]
    #[target_feature(enable = "avx2")]
    pub(super) fn new(layout: &KeyLayout) -> Self {
        let book = layout.codebook().unwrap_or(&LINEAR);
        let places = if CODES == BYTES { &BYTE_WORDS } else { &NIBBLE_WORDS };
        // SAFETY: memory is read through references to arrays of the sizes that the instructions take.
        unsafe {
            Self {
                kept: layout.kept(),
                codebook: _mm256_broadcastsi128_si256(_mm_loadu_si128(book.as_ptr().cast())),
                places: _mm256_loadu_si256(places.as_ptr().cast()),
            }
        }
    }

    /// Bytes from the first code on that are read.
    pub(super) fn reach(&self) -> usize {
        let codes = self.kept.next_multiple_of(CHANNELS);
        if CODES == BYTES { codes } else { codes / 2 }
    }

    /// Sets `magnitudes` to those of row `n` of `scalars`, whose codes begin at `codes`; what follows the
    /// last one is any number.
    ///
    /// # Safety
    /// [`Self::reach`] bytes can be read from `codes` on.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c,bmi2,popcnt")]
    pub(super) unsafe fn read(&self, codes: *const u8, scalars: &Scalars, n: usize, magnitudes: &mut Magnitudes) {
        let least = _mm256_set1_epi32(scalars.words[1][n]);
        let step = _mm256_set1_epi32(scalars.words[2][n]);
        let some = self.kept.div_ceil(CHANNELS);
        for (n, to) in magnitudes.0.as_chunks_mut::<CHANNELS>().0[..some].iter_mut().enumerate() {
            // SAFETY: by this function's contract; memory is written through a reference to an array of the size and
            // alignment that the instruction takes.
            unsafe {
                let code = self.sixteen(codes, n);
                let magnitude = _mm256_add_epi16(high_product(code, step), least);
                _mm256_store_si256(to.as_mut_ptr().cast(), magnitude);
            }
        }
    }

    /// The `n`th sixteen codes in words, in 255ths, twice in each.
    ///
    /// # Safety
    /// They can be read.
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn sixteen(&self, codes: *const u8, n: usize) -> __m256i {
        // SAFETY: by this function's contract.
        unsafe {
            if CODES == BYTES {
                let bytes = _mm_loadu_si128(codes.add(CHANNELS * n).cast());
                return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(bytes), self.places);
            }
            let bytes = _mm_loadl_epi64(codes.add(CHANNELS / 2 * n).cast());
            let pairs = _mm256_shuffle_epi8(_mm256_broadcastq_epi64(bytes), self.places);
            // Low nibbles in even words, high ones in odd words.
            let nibbles = _mm256_blend_epi16::<0b1010_1010>(pairs, _mm256_srli_epi16::<4>(pairs));
            _mm256_shuffle_epi8(self.codebook, _mm256_and_si256(nibbles, _mm256_set1_epi8(0x0f)))
        }
    }
}

/// The high halves of products of words.
#[inline]
#[target_feature(enable = "avx2")]
fn high_product(a: __m256i, b: __m256i) -> __m256i {
    let product;
    // The compiler has the intrinsic widen all words, multiply and narrow them again.
    // SAFETY: the instruction touches only these registers; the function needs AVX2.
    unsafe {
        asm!(
            "vpmulhuw {}, {}, {}", out(ymm_reg) product, in(ymm_reg) a, in(ymm_reg) b,
            options(pure, nomem, nostack, preserves_flags),
        )
    };
    product
}

/// Where sixteen words have their byte from, twice.
const BYTE_WORDS: [u8; 2 * CHANNELS] = {
    let mut at = [0; 2 * CHANNELS];
    let mut n = 0;
    while n < 2 * CHANNELS {
        at[n] = n as u8 / 2;
        n += 1;
    }
    at
};

/// Where sixteen words have the byte with their nibble from, twice.
const NIBBLE_WORDS: [u8; 2 * CHANNELS] = {
    let mut at = [0; 2 * CHANNELS];
    let mut n = 0;
    while n < 2 * CHANNELS {
        at[n] = n as u8 / 4;
        n += 1;
    }
    at
};
