//! Sums over lanes of many vectors at once, and fields of eight rows as vectors.

use std::arch::x86_64::*;

/// Rows whose numbers share vectors, a lane each.
pub(super) const ROWS: usize = 8;

/// In each half, the sums of the lanes of that half of each of up to four vectors.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn sum_within_halves(x: &[__m256]) -> __m256 {
    let mut four = [_mm256_setzero_ps(); 4];
    four[..x.len()].copy_from_slice(x);
    let [a, b, c, d] = four;
    let ab = _mm256_add_ps(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
    let cd = _mm256_add_ps(_mm256_unpacklo_ps(c, d), _mm256_unpackhi_ps(c, d));
    _mm256_add_ps(_mm256_shuffle_ps::<0b01_00_01_00>(ab, cd), _mm256_shuffle_ps::<0b11_10_11_10>(ab, cd))
}

/// The sums of four heads, a vector each with a row a lane, of what [`sum_within_halves`] gives for eight rows.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn by_head(rows: &[__m256; ROWS]) -> [__m256; 4] {
    let mut sums = [_mm256_setzero_ps(); 4];
    for (n, sums) in sums.iter_mut().enumerate() {
        let (first, second) = (rows[n], rows[n + 4]);
        *sums =
            _mm256_add_ps(_mm256_permute2f128_ps::<0x20>(first, second), _mm256_permute2f128_ps::<0x31>(first, second));
    }
    transpose(sums)
}

/// Within each half, lane `m` of `x[n]` as lane `n` of the vector `m`.
#[inline]
#[target_feature(enable = "avx2")]
fn transpose(x: [__m256; 4]) -> [__m256; 4] {
    let [a, b, c, d] = x;
    let (ab, ab_high) = (_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
    let (cd, cd_high) = (_mm256_unpacklo_ps(c, d), _mm256_unpackhi_ps(c, d));
    [
        _mm256_shuffle_ps::<0b01_00_01_00>(ab, cd),
        _mm256_shuffle_ps::<0b11_10_11_10>(ab, cd),
        _mm256_shuffle_ps::<0b01_00_01_00>(ab_high, cd_high),
        _mm256_shuffle_ps::<0b11_10_11_10>(ab_high, cd_high),
    ]
}

/// The first four words of 32 bits of eight `rows`: a vector a word, a lane a row.
///
/// # Safety
/// 16 bytes can be read from each row on.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) unsafe fn first_words(rows: [*const u8; ROWS]) -> [__m256i; 4] {
    let mut pairs = [_mm256_setzero_ps(); 4];
    for (n, pair) in pairs.iter_mut().enumerate() {
        // SAFETY: by this function's contract.
        *pair = unsafe { _mm256_loadu2_m128(rows[n + 4].cast(), rows[n].cast()) };
    }
    transpose(pairs).map(|x| _mm256_castps_si256(x))
}

/// The low and the high halves of eight words of 32 bits.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn halves(words: __m256i) -> [__m128i; 2] {
    let low = _mm256_and_si256(words, _mm256_set1_epi32(0xffff));
    let packed = _mm256_packus_epi32(low, _mm256_srli_epi32::<16>(words));
    // Quarters of low, high, low, high.
    let sorted = _mm256_permute4x64_epi64::<0b11_01_10_00>(packed);
    [_mm256_castsi256_si128(sorted), _mm256_extracti128_si256::<1>(sorted)]
}

/// The first two words of 32 bits of eight `rows`: a vector a word, a lane a row.
///
/// # Safety
/// 8 bytes can be read from each row on.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) unsafe fn first_two_words(rows: [*const u8; ROWS]) -> [__m256i; 2] {
    let mut pairs = [_mm_setzero_ps(); ROWS / 2];
    for (pair, rows) in pairs.iter_mut().zip(rows.as_chunks::<2>().0) {
        // SAFETY: by this function's contract.
        let [low, high] = rows.map(|row| unsafe { _mm_loadl_epi64(row.cast()) });
        *pair = _mm_castsi128_ps(_mm_unpacklo_epi64(low, high));
    }
    let [a, b, c, d] = pairs;
    let (first, second) = (_mm256_set_m128(c, a), _mm256_set_m128(d, b));
    [
        _mm256_castps_si256(_mm256_shuffle_ps::<0b10_00_10_00>(first, second)),
        _mm256_castps_si256(_mm256_shuffle_ps::<0b11_01_11_01>(first, second)),
    ]
}
