//! Weighted sums of value rows.

use std::arch::x86_64::*;

use super::super::few::CHUNK;
use super::super::values::Sums;
use super::super::{AHEAD, fetch, window};
use super::{CHANNELS, Weights, dot, greatest, halves};
use crate::cpu::vector::LANES;
use crate::format::{Bits, MAX_HEAD_DIM, ValueLayout};

/// Most pairs of scale and minimum of a row.
const MOST_GROUPS: usize = MAX_HEAD_DIM / 32;

/// Blocks of channels added to at once.
const BLOCKS: usize = CHANNELS / LANES;

/// Weights of `H` queries times the scales of one group of channels, in whole numbers.
#[derive(Clone, Copy)]
struct Group<const H: usize> {
    words: [[i16; CHUNK]; H],
    /// What 1 stands for.
    units: [f32; H],
    /// Sums of weights times minimum.
    least: [f32; H],
}

/// Adds the values of the `count` first of `rows` times their `weights` to `sums`, one entry a block of channels, with 4
/// bits the even and the odd channels of a group apart, as [`super::super::values::add_rows`] does. For quantised values.
#[target_feature(
    enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vbmi2,avx512vnni,f16c,bmi2,popcnt,fma,avx2"
)]
pub(in crate::cpu::fast) fn add_rows<const H: usize>(
    layout: &ValueLayout,
    rows: &[u8],
    count: usize,
    weights: &Weights<H>,
    sums: &mut [Sums<H>],
) {
    const { assert!(CHUNK.is_multiple_of(LANES)) };
    let mut groups = [Group { words: [[0; CHUNK]; H], units: [0.0; H], least: [0.0; H] }; MOST_GROUPS];
    let groups = &mut groups[..layout.codes_at() / 4];
    let rows = &rows[..count * layout.row_bytes()];
    for (g, group) in groups.iter_mut().enumerate() {
        let mut fields = [0u32; CHUNK];
        for (key, field) in fields.iter_mut().enumerate().take(count) {
            *field = u32::from_le_bytes(*window(rows, key * layout.row_bytes() + 4 * g));
        }
        *group = weigh(&fields, weights);
    }
    match (layout.bits(), H) {
        (Bits::B8, 8) => (0..2).for_each(|n| bytes::<H, 4>(layout, rows, count, &groups[0], 4 * n, sums)),
        (Bits::B8, _) => bytes::<H, H>(layout, rows, count, &groups[0], 0, sums),
        (_, 8) => (0..2).for_each(|n| nibbles::<H, 4>(layout, rows, count, groups, 4 * n, sums)),
        _ => nibbles::<H, H>(layout, rows, count, groups, 0, sums),
    }
}

/// Weights for one group of channels whose pairs of scale and minimum are `fields`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vbmi2,avx512vnni,f16c,fma,avx2")]
fn weigh<const H: usize>(fields: &[u32; CHUNK], weights: &Weights<H>) -> Group<H> {
    let mut group = Group { words: [[0; CHUNK]; H], units: [0.0; H], least: [0.0; H] };
    // SAFETY: memory is read and written through references to arrays of the sizes that the instructions take.
    unsafe {
        let mut scale = [_mm512_setzero_ps(); CHUNK / LANES];
        let mut minimum = scale;
        for (n, fields) in fields.as_chunks::<LANES>().0.iter().enumerate() {
            let fields = _mm512_loadu_si512(fields.as_ptr().cast());
            scale[n] = halves(_mm512_cvtepi32_epi16(fields));
            minimum[n] = halves(_mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(fields)));
        }
        for (h, weights) in weights.iter().enumerate() {
            let mut scaled = scale;
            let mut least = _mm512_setzero_ps();
            let mut most = least;
            for n in 0..CHUNK / LANES {
                let weight = _mm512_loadu_ps(weights[n].as_ptr());
                least = _mm512_fmadd_ps(weight, minimum[n], least);
                scaled[n] = _mm512_mul_ps(weight, scale[n]);
                most = _mm512_max_ps(most, _mm512_abs_ps(scaled[n]));
            }
            group.least[h] = _mm512_reduce_add_ps(least);
            group.units[h] = greatest(most) / 32_767.0;
            let by = if group.units[h].is_normal() { 1.0 / group.units[h] } else { 0.0 };
            for (scaled, to) in scaled.into_iter().zip(group.words[h].as_chunks_mut::<LANES>().0) {
                let whole = _mm512_cvtps_epi32(_mm512_mul_ps(scaled, _mm512_set1_ps(by)));
                _mm256_storeu_si256(to.as_mut_ptr().cast(), _mm512_cvtsepi32_epi16(whole));
            }
        }
    }
    group
}

/// The weights of two keys, one after the other, in every lane.
#[inline]
#[target_feature(enable = "avx512f")]
fn pair(words: &[i16; CHUNK], pair: usize) -> __m512i {
    let [first, second] = words.as_chunks::<2>().0[pair];
    _mm512_set1_epi32(i32::from(first as u16) | i32::from(second) << 16)
}

/// Adds up bytes, for `N` queries from number `first` on.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vbmi2,avx512vnni,fma,avx2")]
fn bytes<const H: usize, const N: usize>(
    layout: &ValueLayout,
    rows: &[u8],
    count: usize,
    group: &Group<H>,
    first: usize,
    sums: &mut [Sums<H>],
) {
    let words: &[[i16; CHUNK]; N] = group.words[first..].first_chunk().expect("so many queries");
    for (part, sums) in sums.as_chunks_mut::<BLOCKS>().0.iter_mut().enumerate() {
        let at = layout.codes_at() + part * CHANNELS;
        let row = |key: usize| -> &[u8; CHANNELS] { window(rows, key * layout.row_bytes() + at) };
        // SAFETY: memory is read through references to arrays of the sizes that the instructions take.
        unsafe {
            let mut lanes = [[_mm512_setzero_si512(); N]; BLOCKS];
            let mut pairs = [_mm512_setzero_si512(); BLOCKS];
            for (n, pairs) in pairs.iter_mut().enumerate() {
                *pairs = _mm512_loadu_si512(PAIRS[n].as_ptr().cast());
            }
            for n in 0..count.div_ceil(2) {
                if part == 0 && first == 0 {
                    fetch(rows, (AHEAD + 2 * n) * layout.row_bytes(), 2 * layout.row_bytes());
                }
                // A last key without a second has it twice, once with no weight.
                let a = _mm512_loadu_si512(row(2 * n).as_ptr().cast());
                let b = _mm512_loadu_si512(row((2 * n + 1).min(count - 1)).as_ptr().cast());
                for (pairs, lanes) in pairs.iter().zip(&mut lanes) {
                    let codes = _mm512_maskz_permutex2var_epi8(0x5555_5555_5555_5555, a, *pairs, b);
                    for (lanes, words) in lanes.iter_mut().zip(words) {
                        *lanes = dot(*lanes, codes, pair(words, n));
                    }
                }
            }
            for (sums, lanes) in sums.iter_mut().zip(lanes) {
                finish(group, first, lanes, sums);
            }
        }
    }
}

/// Adds up nibbles, for `N` queries from number `first` on.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vbmi2,avx512vnni,fma,avx2")]
fn nibbles<const H: usize, const N: usize>(
    layout: &ValueLayout,
    rows: &[u8],
    count: usize,
    groups: &[Group<H>],
    first: usize,
    sums: &mut [Sums<H>],
) {
    let both = groups.as_chunks::<2>().0;
    for (part, (sums, groups)) in sums.as_chunks_mut::<BLOCKS>().0.iter_mut().zip(both).enumerate() {
        let at = layout.codes_at() + part * CHANNELS / 2;
        let row = |key: usize| -> &[u8; CHANNELS / 2] { window(rows, key * layout.row_bytes() + at) };
        // SAFETY: memory is read through references to arrays of the sizes that the instructions take.
        unsafe {
            let mut lanes = [[_mm512_setzero_si512(); N]; BLOCKS];
            let low = _mm512_set1_epi16(0x0f);
            for n in 0..count.div_ceil(2) {
                if part == 0 && first == 0 {
                    fetch(rows, (AHEAD + 2 * n) * layout.row_bytes(), 2 * layout.row_bytes());
                }
                // A last key without a second has it twice, once with no weight.
                let a = _mm256_loadu_si256(row(2 * n).as_ptr().cast());
                let b = _mm256_loadu_si256(row((2 * n + 1).min(count - 1)).as_ptr().cast());
                let ab = _mm512_inserti64x4::<1>(_mm512_castsi256_si512(a), b);
                for (g, lanes) in lanes.as_chunks_mut::<2>().0.iter_mut().enumerate() {
                    let pairs = _mm512_loadu_si512(NIBBLE_PAIRS[g].as_ptr().cast());
                    let codes = _mm512_maskz_permutexvar_epi8(0x5555_5555_5555_5555, pairs, ab);
                    let (even, odd) = (_mm512_and_si512(codes, low), _mm512_srli_epi16::<4>(codes));
                    let words: &[[i16; CHUNK]; N] = groups[g].words[first..].first_chunk().expect("so many queries");
                    for h in 0..N {
                        let weights = pair(&words[h], n);
                        lanes[0][h] = dot(lanes[0][h], even, weights);
                        lanes[1][h] = dot(lanes[1][h], odd, weights);
                    }
                }
            }
            for (n, (sums, lanes)) in sums.iter_mut().zip(lanes).enumerate() {
                finish(&groups[n / 2], first, lanes, sums);
            }
        }
    }
}

/// Adds what `lanes` stand for to `sums`, for `N` queries from number `first` on.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,fma,avx2")]
fn finish<const H: usize, const N: usize>(group: &Group<H>, first: usize, lanes: [__m512i; N], sums: &mut Sums<H>) {
    for (n, lanes) in lanes.into_iter().enumerate() {
        let h = first + n;
        let sum = &mut sums.0[h];
        // SAFETY: memory is read and written through references to arrays of the sizes that the instructions take.
        unsafe {
            let before = _mm512_add_ps(_mm512_loadu_ps(sum.as_ptr()), _mm512_set1_ps(group.least[h]));
            let after = _mm512_fmadd_ps(_mm512_cvtepi32_ps(lanes), _mm512_set1_ps(group.units[h]), before);
            _mm512_storeu_ps(sum.as_mut_ptr(), after);
        }
    }
}

/// Where a lane's two codes lie in two vectors of bytes, for each block of channels.
const PAIRS: [[u8; CHANNELS]; BLOCKS] = {
    let mut at = [[0; CHANNELS]; BLOCKS];
    let mut j = 0;
    while j < CHANNELS {
        at[j / LANES][j % LANES * 4] = j as u8;
        at[j / LANES][j % LANES * 4 + 2] = (CHANNELS + j) as u8;
        j += 1;
    }
    at
};

/// Where a lane's two bytes lie in a vector that holds 32 bytes of either key, for each group of channels.
const NIBBLE_PAIRS: [[u8; CHANNELS]; 2] = {
    let mut at = [[0; CHANNELS]; 2];
    let mut j = 0;
    while j < CHANNELS / 2 {
        at[j / LANES][j % LANES * 4] = j as u8;
        at[j / LANES][j % LANES * 4 + 2] = (CHANNELS / 2 + j) as u8;
        j += 1;
    }
    at
};
