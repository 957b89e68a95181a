//! Magnitudes of key channels in int16.

use std::arch::x86_64::*;

use super::inner_loop::PackedChannels;
use super::words::CHANNELS;
use crate::cpu::decode::chunk::CHUNK;
use crate::cpu::isa::x86_64::avx512::reduce::ROWS;
use crate::cpu::isa::x86_64::avx512::vector::finite_f16;
use crate::cpu::isa::x86_64::fixed_point::GREATEST_MAGNITUDE;
use crate::format::v1::layout::KeyLayout;

/// Codes of a byte each.
pub(super) const BYTES: u8 = 0;
/// Codes of a nibble each.
pub(super) const NIBBLES: u8 = 1;
/// Codes of a nibble each that stand for a byte of a codebook.
pub(super) const COMPANDED: u8 = 2;

/// What the magnitudes of a chunk's rows are made of, in units of each row.
pub(super) struct Scalars {
    /// Recovery, least, step: words, twice each.
    words: [[u32; CHUNK]; 3],
    /// What 1 stands for in each row.
    units: [f32; CHUNK],
}

impl Scalars {
    /// Of rows of zeros.
    #[inline(always)]
    pub(super) const fn zeroed() -> Self {
        Self { words: [[0; CHUNK]; 3], units: [0.0; CHUNK] }
    }

    /// Sets those of the `group`th sixteen rows from float16 scalars, a lane a row: recovery and least, one after the
    /// other, and step, whatever follows it. False if one is negative; then they are any numbers.
    #[inline]
    #[target_feature(enable = "avx512dq,avx512vl,avx512vbmi,avx512vbmi2,avx512vnni,bmi2,popcnt")]
    pub(super) fn set<const CODES: u8>(
        &mut self,
        group: usize,
        recovery_least: __m512i,
        step: __m512i,
        recover: bool,
    ) -> bool {
        // The greatest code, and what 1 is in a word that is to be multiplied and cut off: a byte stands there twice, a
        // nibble in the high half.
        let (levels, code) = if CODES == NIBBLES { (15.0, 16.0 * 257.0) } else { (255.0, 257.0) };
        let zero = _mm512_setzero_ps();
        let recovery = if recover { finite_f16(_mm512_cvtepi32_epi16(recovery_least)) } else { zero };
        let least = finite_f16(_mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(recovery_least)));
        let step = finite_f16(_mm512_cvtepi32_epi16(step));
        let negative = _mm512_cmp_ps_mask::<_CMP_LT_OQ>(_mm512_min_ps(_mm512_min_ps(recovery, least), step), zero);
        let most = _mm512_max_ps(_mm512_fmadd_ps(step, _mm512_set1_ps(levels), least), recovery);
        let some = _mm512_cmp_ps_mask::<_CMP_GT_OQ>(most, zero);
        let by = _mm512_maskz_div_ps(some, _mm512_set1_ps(GREATEST_MAGNITUDE), most);
        let whole = [
            _mm512_mul_ps(recovery, by),
            // Products with codes are cut off, which takes half a unit from them.
            _mm512_fmadd_ps(least, by, _mm512_maskz_mov_ps(some, _mm512_set1_ps(0.5))),
            _mm512_mul_ps(_mm512_mul_ps(step, by), _mm512_set1_ps(65_536.0 / code)),
        ];
        for (words, x) in self.words.iter_mut().zip(whole) {
            let word = _mm512_cvtps_epi32(x);
            let twice = _mm512_or_si512(word, _mm512_slli_epi32::<16>(word));
            let words = &mut words.as_chunks_mut::<ROWS>().0[group];
            // SAFETY: memory is written through a reference to an array of the size that the instruction takes.
            unsafe { _mm512_storeu_si512(words.as_mut_ptr().cast(), twice) };
        }
        let units = _mm512_mul_ps(most, _mm512_set1_ps(1.0 / GREATEST_MAGNITUDE));
        let to = &mut self.units.as_chunks_mut::<ROWS>().0[group];
        // SAFETY: likewise.
        unsafe { _mm512_storeu_ps(to.as_mut_ptr(), units) };
        negative == 0
    }

    /// What 1 stands for in the `group`th sixteen rows, a lane a row.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(super) fn units(&self, group: usize) -> __m512 {
        let units = &self.units.as_chunks::<ROWS>().0[group];
        // SAFETY: memory is read through a reference to an array of the size that the instruction takes.
        unsafe { _mm512_loadu_ps(units.as_ptr()) }
    }
}

/// Reads rows of `N` times 64 channels.
pub(super) struct MagnitudeReader<const CODES: u8, const N: usize> {
    codes_at: usize,
    kept: usize,
    /// See [`INTO_WORDS`].
    into_words: [__m512i; 2],
    /// See [`INTO_OCTETS`].
    into_octets: __m512i,
    /// In each quarter, the codebook; nothing where there is none.
    codebook: __m512i,
}

impl<const CODES: u8, const N: usize> MagnitudeReader<CODES, N> {
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(super) fn new(layout: &KeyLayout) -> Self {
        // SAFETY: memory is read through references to arrays of the sizes that the instructions take.
        unsafe {
            Self {
                codes_at: layout.codes_at(),
                kept: layout.kept(),
                into_words: [
                    _mm512_loadu_si512(INTO_WORDS[0].as_ptr().cast()),
                    _mm512_loadu_si512(INTO_WORDS[1].as_ptr().cast()),
                ],
                into_octets: _mm512_loadu_si512(INTO_OCTETS.as_ptr().cast()),
                codebook: _mm512_broadcast_i32x4(_mm_loadu_si128(
                    layout.codebook().unwrap_or(&[0; 16]).as_ptr().cast(),
                )),
            }
        }
    }

    /// What the channels of a row are made of, 64 by 64, and how many are marked. `row` is number `number` of those
    /// with `scalars`. With more channels marked than kept, the channels are any numbers.
    ///
    /// # Safety
    /// The fields of a row and [`CHANNELS`] bytes more can be read from `row` on.
    #[inline]
    #[target_feature(enable = "avx512dq,avx512vl,avx512vbmi,avx512vbmi2,avx512vnni,bmi2,popcnt")]
    pub(super) unsafe fn read(
        &self,
        row: *const u8,
        scalars: &Scalars,
        number: usize,
    ) -> ([PackedChannels<'_>; N], usize) {
        let scalar = |n: usize| _mm512_set1_epi32(scalars.words[n][number] as i32);
        let scalars = [scalar(0), scalar(1), scalar(2)];
        let nothing =
            PackedChannels { codes: _mm512_setzero_si512(), mask: 0, sign: 0, scalars, words: &self.into_words };
        let mut parts = [nothing; N];
        let mut used = 0;
        for (n, part) in parts.iter_mut().enumerate() {
            // SAFETY: the mask and the sign plane of a row are N words each, and from any of the kept codes on,
            // CHANNELS bytes can be read.
            unsafe {
                part.mask = row.add(8 * n).cast::<u64>().read_unaligned();
                part.sign = row.add(8 * (N + n)).cast::<u64>().read_unaligned();
                part.codes = self.codes(row.add(self.codes_at), used.min(self.kept));
            }
            used += part.mask.count_ones() as usize;
        }
        (parts, used)
    }

    /// 64 codes from number `first` on, a byte each; nibbles in the high half of it.
    ///
    /// # Safety
    /// From code `first` on, [`CHANNELS`] bytes can be read.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi")]
    unsafe fn codes(&self, codes: *const u8, first: usize) -> __m512i {
        // SAFETY: by this function's contract.
        unsafe {
            if CODES == BYTES {
                return _mm512_loadu_si512(codes.add(first).cast());
            }
            let octets = _mm512_permutexvar_epi8(self.into_octets, _mm512_loadu_si512(codes.add(first / 2).cast()));
            let even = first.is_multiple_of(2);
            if CODES == COMPANDED {
                // Every eight bits that begin with a nibble.
                let shifts = _mm512_set1_epi64(if even { 0x1c18_1410_0c08_0400 } else { 0x201c_1814_100c_0804 });
                let nibbles = _mm512_and_si512(_mm512_multishift_epi64_epi8(shifts, octets), _mm512_set1_epi8(0x0f));
                return _mm512_shuffle_epi8(self.codebook, nibbles);
            }
            // Every eight bits that end with a nibble.
            let shifts = _mm512_set1_epi64(if even { 0x1814_100c_0804_003c } else { 0x1c18_1410_0c08_0400 });
            _mm512_and_si512(_mm512_multishift_epi64_epi8(shifts, octets), _mm512_set1_epi8(0xf0u8 as i8))
        }
    }
}

/// Where each word has its byte from, twice, of 32 words from the first or the last 32 bytes.
const INTO_WORDS: [[u8; CHANNELS]; 2] = {
    let mut at = [[0; CHANNELS]; 2];
    let mut n = 0;
    while n < CHANNELS {
        at[n / 32][n % 32 * 2] = n as u8;
        at[n / 32][n % 32 * 2 + 1] = n as u8;
        n += 1;
    }
    at
};

/// Where each eight bytes come from that begin with eight nibbles.
const INTO_OCTETS: [u8; CHANNELS] = {
    let mut at = [0; CHANNELS];
    let mut n = 0;
    while n < CHANNELS {
        at[n] = (n / 8 * 4 + n % 8) as u8;
        n += 1;
    }
    at
};
