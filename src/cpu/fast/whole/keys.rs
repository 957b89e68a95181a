//! Products of key rows with queries.

use std::arch::x86_64::*;

use super::super::few::CHUNK;
use super::super::keys::truncate;
use super::super::{AHEAD, fetch, window};
use super::{CHANNELS, NO_WORDS, ROWS, Words, dot, expand, halves, high_products, takes};
use crate::cpu::vector::LANES;
use crate::format::{Bits, KeyLayout, MAX_HEAD_DIM};

/// Bytes beyond the fields of a row that its vectors may reach.
const BEYOND: usize = CHANNELS;

/// Most bytes that the fields of a quantised row take.
const MOST_BYTES: usize = MAX_HEAD_DIM / 4 + 6 + MAX_HEAD_DIM;

/// Most vectors of int16 that a key takes.
const MOST_WORDS: usize = MAX_HEAD_DIM / 32;

/// The greatest magnitude of a row, in its own units.
const GREATEST_SIZE: f32 = 32_000.0;

/// Most that the magnitudes of the query channels may come to which meet in one lane: with [`GREATEST_SIZE`] each, and
/// what rounding adds, their products stay within int32.
const GREATEST_SUM: f32 = 65_000.0;

/// `H` queries in whole numbers.
pub(in crate::cpu::fast) struct Keys<'a, const H: usize> {
    layout: &'a KeyLayout,
    recover: bool,
    /// Four heads a vector with eight channels each, channel by channel; then, for the heads that are no four, vectors of
    /// 32 channels, head by head.
    queries: Vec<Words>,
    /// What 1 stands for in each query.
    units: [f32; H],
    sizes: Box<Sizes>,
}

/// Keys in whole numbers.
struct Sizes {
    /// `[ROWS, D]`
    words: [Words; ROWS * MOST_WORDS],
    /// What 1 stands for in each row.
    units: [f32; ROWS],
}

impl<'a, const H: usize> Keys<'a, H> {
    const FOURS: usize = H / 4;

    /// For `queries`, in units of c, `[D]` each, and rows of `layout` whose pruned channels read as zero unless `recover`.
    /// `None` if other ways are to be taken for these.
    pub(in crate::cpu::fast) fn new(layout: &'a KeyLayout, recover: bool, queries: [&[f32]; H]) -> Option<Self> {
        let d = layout.head_dim();
        let finite = queries.iter().all(|q| q.iter().all(|x| x.is_finite()));
        if layout.bits() == Bits::B16 || !takes(d) || !finite {
            return None;
        }
        let mut units = [0.0; H];
        let mut words = vec![NO_WORDS; Self::FOURS * d / 8 + H % 4 * d / 32];
        let (fours, singles) = words.split_at_mut(Self::FOURS * d / 8);
        for (h, query) in queries.into_iter().enumerate() {
            let together = if h / 4 < Self::FOURS { 4 } else { 16 };
            let mut sums = [0.0; 16];
            for (pair, x) in query.as_chunks::<2>().0.iter().enumerate() {
                sums[pair % together] += x[0].abs() + x[1].abs();
            }
            let most = query.iter().fold(0f32, |most, x| most.max(x.abs()));
            let most_sum = sums.into_iter().fold(0f32, f32::max);
            units[h] = (most / 32_767.0).max(most_sum / GREATEST_SUM);
            if !units[h].is_normal() {
                // All channels are next to nothing, or beyond measure.
                if units[h] > 1.0 {
                    return None;
                }
                units[h] = 0.0;
                continue;
            }
            for (j, x) in query.iter().enumerate() {
                let whole = x / units[h];
                let whole = (whole + 0.5f32.copysign(whole)) as i16;
                match h / 4 {
                    four if four < Self::FOURS => fours[four * d / 8 + j / 8].0[h % 4 * 8 + j % 8] = whole,
                    _ => singles[(h % 4 * d + j) / 32].0[j % 32] = whole,
                }
            }
        }
        let sizes = Box::new(Sizes { words: [NO_WORDS; ROWS * MOST_WORDS], units: [0.0; ROWS] });
        Some(Self { layout, recover, queries: words, units, sizes })
    }

    /// Products of the queries with the `count` first of `rows`, or false if a row has numbers that only others can read.
    #[target_feature(
        enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vbmi2,avx512vnni,f16c,bmi2,popcnt,fma,avx2"
    )]
    pub(in crate::cpu::fast) fn products(
        &mut self,
        rows: &[u8],
        count: usize,
        products: &mut [[[f32; LANES]; CHUNK / LANES]; H],
    ) -> bool {
        let bytes = self.layout.row_bytes();
        for first in (0..count).step_by(ROWS) {
            if !self.size(&rows[first * bytes..], bytes, ROWS.min(count - first)) {
                return false;
            }
            let mut of_rows = [[0.0; ROWS]; H];
            match self.layout.head_dim() {
                64 => self.multiply::<2>(&mut of_rows),
                128 => self.multiply::<4>(&mut of_rows),
                192 => self.multiply::<6>(&mut of_rows),
                _ => self.multiply::<8>(&mut of_rows),
            }
            for (products, of_rows) in products.iter_mut().zip(of_rows) {
                products[first / ROWS] = of_rows;
            }
        }
        true
    }

    /// The first `count` of `rows`, `stride` bytes apart, in whole numbers; false if one of their scalars is negative.
    #[inline]
    #[target_feature(
        enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vbmi2,avx512vnni,f16c,bmi2,popcnt,fma,avx2"
    )]
    fn size(&mut self, rows: &[u8], stride: usize, count: usize) -> bool {
        let layout = self.layout;
        let used = layout.codes_at() + layout.bits().bytes(layout.kept());
        if rows.len() < (count - 1) * stride + used + BEYOND {
            return self.size_copy(rows, stride, count);
        }
        let mut scalars = [0; ROWS];
        let at = layout.scalars_at();
        for (key, scalars) in scalars.iter_mut().enumerate().take(count) {
            *scalars = u64::from_le_bytes(*window(rows, key * stride + at));
        }
        let Some((words, units)) = size_scalars(&scalars, layout.bits(), self.recover) else { return false };
        self.sizes.units = units;
        let rows = Rows { layout, rows, stride, count, scalars: &words };
        let to = &mut self.sizes.words;
        let fits = match (layout.bits(), layout.head_dim()) {
            (Bits::B8, 64) => size_rows::<false, 1>(&rows, to),
            (Bits::B8, 128) => size_rows::<false, 2>(&rows, to),
            (Bits::B8, 192) => size_rows::<false, 3>(&rows, to),
            (Bits::B8, _) => size_rows::<false, 4>(&rows, to),
            (_, 64) => size_rows::<true, 1>(&rows, to),
            (_, 128) => size_rows::<true, 2>(&rows, to),
            (_, 192) => size_rows::<true, 3>(&rows, to),
            _ => size_rows::<true, 4>(&rows, to),
        };
        fits || self.size_copy(rows.rows, stride, count)
    }

    /// As `size`, where vectors would reach beyond the rows or a row has too many channels marked.
    #[cold]
    #[inline(never)]
    #[target_feature(
        enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vbmi2,avx512vnni,f16c,bmi2,popcnt,fma,avx2"
    )]
    fn size_copy(&mut self, rows: &[u8], stride: usize, count: usize) -> bool {
        let used = self.layout.codes_at() + self.layout.bits().bytes(self.layout.kept());
        let mut copy = [0; ROWS * MOST_BYTES + BEYOND];
        for (copy, row) in copy.chunks_exact_mut(used).zip(rows.chunks(stride)).take(count) {
            copy.copy_from_slice(&row[..used]);
            truncate(&mut copy[..self.layout.mask_bytes()], self.layout.kept());
        }
        self.size(&copy, used, count)
    }

    /// Products of all queries with the sizes, `N` vectors of 32 channels a row.
    #[inline]
    #[target_feature(
        enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vbmi2,avx512vnni,f16c,bmi2,popcnt,fma,avx2"
    )]
    fn multiply<const N: usize>(&self, products: &mut [[f32; ROWS]; H]) {
        let (fours, singles) = self.queries.split_at(Self::FOURS * 4 * N);
        let rows = self.sizes.words.as_chunks::<N>().0.as_chunks::<4>().0;
        for (n, rows) in rows.iter().enumerate().take(ROWS / 4) {
            let units = self.sizes.units[4 * n..].first_chunk().expect("as many as rows");
            for (h, four) in fours.chunks_exact(4 * N).enumerate() {
                let of_heads = four_heads(rows, four, units);
                for (products, of_rows) in products[4 * h..].iter_mut().zip(of_heads) {
                    products[4 * n..4 * n + 4].copy_from_slice(&of_rows);
                }
            }
            for (h, single) in singles.chunks_exact(N).enumerate() {
                let of_rows = one_head(rows, single, units);
                products[4 * Self::FOURS + h][4 * n..4 * n + 4].copy_from_slice(&of_rows);
            }
        }
        for (products, &unit) in products.iter_mut().zip(&self.units) {
            products.iter_mut().for_each(|x| *x *= unit);
        }
    }
}

/// `count` of `rows`, `stride` bytes apart, with the words of recovery, least and step of each, twice.
struct Rows<'a> {
    layout: &'a KeyLayout,
    rows: &'a [u8],
    stride: usize,
    count: usize,
    scalars: &'a [[u32; ROWS]; 3],
}

/// The words of recovery, least and step of rows whose scalars are `scalars`, twice each, and what 1 stands for in each row;
/// `None` if one is negative.
#[inline]
#[target_feature(
    enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vbmi2,avx512vnni,f16c,bmi2,popcnt,fma,avx2"
)]
fn size_scalars(scalars: &[u64; ROWS], bits: Bits, recover: bool) -> Option<([[u32; ROWS]; 3], [f32; ROWS])> {
    let levels = bits.greatest_code().expect("quantised");
    // What 1 is in a word that is to be multiplied and cut off: a byte stands there twice, a nibble in the high half.
    let code = if bits == Bits::B8 { 257.0 } else { 16.0 * 257.0 };
    let mut words = [[0u32; ROWS]; 3];
    let mut units = [0.0; ROWS];
    // SAFETY: memory is read and written through references to arrays of the sizes that the instructions take.
    unsafe {
        let low = _mm512_loadu_si512(scalars.as_ptr().cast());
        let high = _mm512_loadu_si512(scalars.as_ptr().add(8).cast());
        let sixteen = |low: __m512i, high: __m512i| {
            halves(_mm256_set_m128i(_mm512_cvtepi64_epi16(high), _mm512_cvtepi64_epi16(low)))
        };
        let recovery = if recover { sixteen(low, high) } else { _mm512_setzero_ps() };
        let least = sixteen(_mm512_srli_epi64::<16>(low), _mm512_srli_epi64::<16>(high));
        let step = sixteen(_mm512_srli_epi64::<32>(low), _mm512_srli_epi64::<32>(high));
        let zero = _mm512_setzero_ps();
        let negative = _mm512_cmp_ps_mask::<_CMP_LT_OQ>(_mm512_min_ps(_mm512_min_ps(recovery, least), step), zero);
        if negative != 0 {
            return None;
        }
        let most = _mm512_max_ps(_mm512_fmadd_ps(step, _mm512_set1_ps(levels), least), recovery);
        let some = _mm512_cmp_ps_mask::<_CMP_GT_OQ>(most, zero);
        let by = _mm512_maskz_div_ps(some, _mm512_set1_ps(GREATEST_SIZE), most);
        _mm512_storeu_ps(units.as_mut_ptr(), _mm512_mul_ps(most, _mm512_set1_ps(1.0 / GREATEST_SIZE)));
        let mut put = |n: usize, x: __m512| {
            let whole = _mm512_cvtps_epi32(x);
            let twice = _mm512_or_si512(whole, _mm512_slli_epi32::<16>(whole));
            _mm512_storeu_si512(words[n].as_mut_ptr().cast(), twice);
        };
        put(0, _mm512_mul_ps(recovery, by));
        // Products with codes are cut off, which takes half a unit from them.
        put(1, _mm512_fmadd_ps(least, by, _mm512_maskz_mov_ps(some, _mm512_set1_ps(0.5))));
        put(2, _mm512_mul_ps(_mm512_mul_ps(step, by), _mm512_set1_ps(65_536.0 / code)));
    }
    Some((words, units))
}

/// Rows of `N` times 64 channels in whole numbers; false if one has more channels marked than kept.
#[target_feature(
    enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vbmi2,avx512vnni,f16c,bmi2,popcnt,fma,avx2"
)]
fn size_rows<const NIBBLES: bool, const N: usize>(of: &Rows, to: &mut [Words; ROWS * MOST_WORDS]) -> bool {
    let &Rows { layout, rows, stride, count, scalars: [recovery, least, step] } = of;
    let (kept, codes_at) = (layout.kept(), layout.codes_at());
    let bytes = codes_at + layout.bits().bytes(kept) + BEYOND;
    let mut most = 0;
    // SAFETY: memory is read and written through references to arrays of the sizes that the instructions take.
    unsafe {
        let into_words =
            [_mm512_loadu_si512(INTO_WORDS[0].as_ptr().cast()), _mm512_loadu_si512(INTO_WORDS[1].as_ptr().cast())];
        for (key, to) in to.as_chunks_mut::<2>().0.as_chunks_mut::<N>().0.iter_mut().enumerate().take(count) {
            fetch(rows, (key + AHEAD) * stride, stride);
            let row = &rows[key * stride..][..bytes];
            let (planes, codes) = row.split_at(codes_at);
            let recovery = _mm512_set1_epi32(recovery[key] as i32);
            let least = _mm512_set1_epi32(least[key] as i32);
            let step = _mm512_set1_epi32(step[key] as i32);
            let mut used = 0;
            for (n, to) in to.iter_mut().enumerate() {
                let mask = u64::from_le_bytes(*window(planes, 8 * n));
                let sign = u64::from_le_bytes(*window(planes, 8 * (N + n)));
                let codes = if NIBBLES {
                    nibbles(codes, used.min(kept))
                } else {
                    _mm512_loadu_si512(window::<CHANNELS>(codes, used.min(kept)).as_ptr().cast())
                };
                used += mask.count_ones() as usize;
                let codes = expand(mask, codes);
                for (n, to) in to.iter_mut().enumerate() {
                    let (mask, sign) = ((mask >> (32 * n)) as u32, (sign >> (32 * n)) as u32);
                    let code = _mm512_permutexvar_epi8(into_words[n], codes);
                    let base = _mm512_mask_blend_epi16(mask, recovery, least);
                    let size = _mm512_add_epi16(high_products(code, step), base);
                    let size = _mm512_mask_sub_epi16(size, sign, _mm512_setzero_si512(), size);
                    _mm512_store_si512(to.0.as_mut_ptr().cast(), size);
                }
            }
            most = most.max(used);
        }
    }
    most <= kept
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

/// 64 nibbles of `codes` from number `first` on, each in the high half of a byte.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn nibbles(codes: &[u8], first: usize) -> __m512i {
    let odd = first % 2;
    let (low, high): (&[u8; 32], &[u8; 32]) = (window(codes, first / 2), window(codes, first / 2 + odd));
    // SAFETY: memory is read through references to arrays of the sizes that the instructions take.
    unsafe {
        let low = _mm512_cvtepu8_epi16(_mm256_loadu_si256(low.as_ptr().cast()));
        let high = _mm512_cvtepu8_epi16(_mm256_loadu_si256(high.as_ptr().cast()));
        let low = _mm512_sll_epi16(low, _mm_cvtsi32_si128(4 - 4 * odd as i32));
        let high = _mm512_sll_epi16(high, _mm_cvtsi32_si128(8 + 4 * odd as i32));
        _mm512_and_si512(_mm512_or_si512(low, high), _mm512_set1_epi8(0xf0u8 as i8))
    }
}

/// The sums of the lanes of each quarter of four vectors: a quarter of theirs in each quarter.
#[inline]
#[target_feature(enable = "avx512f")]
fn quarters([a, b, c, d]: [__m512i; 4]) -> __m512 {
    let (a, b) = (_mm512_cvtepi32_ps(a), _mm512_cvtepi32_ps(b));
    let (c, d) = (_mm512_cvtepi32_ps(c), _mm512_cvtepi32_ps(d));
    let ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
    let cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
    let low = _mm512_shuffle_ps::<0b01_00_01_00>(ab, cd);
    let high = _mm512_shuffle_ps::<0b11_10_11_10>(ab, cd);
    _mm512_add_ps(low, high)
}

/// Products of four `rows` with four queries, `4 * N` vectors of eight channels each.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn four_heads<const N: usize>(rows: &[[Words; N]; 4], queries: &[Words], units: &[f32; 4]) -> [[f32; 4]; 4] {
    // SAFETY: memory is read and written through references to arrays of the sizes that the instructions take.
    unsafe {
        let mut sums = [_mm512_setzero_si512(); 4];
        for (n, queries) in queries.as_chunks::<4>().0.iter().enumerate().take(N) {
            for (part, query) in queries.iter().enumerate() {
                let query = _mm512_load_si512(query.0.as_ptr().cast());
                for (row, sum) in rows.iter().zip(&mut sums) {
                    let key: &[i16; 8] = row[n].0[8 * part..].first_chunk().expect("eight channels");
                    let key = _mm512_broadcast_i32x4(_mm_loadu_si128(key.as_ptr().cast()));
                    *sum = dot(*sum, key, query);
                }
            }
        }
        let units = _mm512_broadcast_f32x4(_mm_loadu_ps(units.as_ptr()));
        let all = _mm512_mul_ps(quarters(sums), units);
        let mut products = [[0.0; 4]; 4];
        _mm512_storeu_ps(products.as_mut_ptr().cast(), all);
        products
    }
}

/// Products of four `rows` with one query, `N` vectors of 32 channels.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn one_head<const N: usize>(rows: &[[Words; N]; 4], query: &[Words], units: &[f32; 4]) -> [f32; 4] {
    // SAFETY: memory is read and written through references to arrays of the sizes that the instructions take.
    unsafe {
        let mut sums = [_mm512_setzero_si512(); 4];
        for (n, query) in query.iter().enumerate().take(N) {
            let query = _mm512_load_si512(query.0.as_ptr().cast());
            for (row, sum) in rows.iter().zip(&mut sums) {
                *sum = dot(*sum, _mm512_load_si512(row[n].0.as_ptr().cast()), query);
            }
        }
        let quarters = quarters(sums);
        let halves = _mm256_add_ps(_mm512_castps512_ps256(quarters), _mm512_extractf32x8_ps::<1>(quarters));
        let all = _mm_add_ps(_mm256_castps256_ps128(halves), _mm256_extractf128_ps::<1>(halves));
        let mut products = [0.0; 4];
        _mm_storeu_ps(products.as_mut_ptr(), _mm_mul_ps(all, _mm_loadu_ps(units.as_ptr())));
        products
    }
}
