//! Weights of value rows in int16.

use std::arch::x86_64::*;

use crate::cpu::decode::chunk::{ByKey, CHUNK, HeadLanes};
use crate::cpu::isa::vector::LANES;
use crate::cpu::isa::x86_64::avx512::reduce::{ROWS, first_words, greatest_each, sum_each};
use crate::cpu::isa::x86_64::avx512::vector::{Avx512, finite_f16};
use crate::cpu::isa::x86_64::fixed_point::{DITHER, GREATEST_WORD, SMALL};
use crate::cpu::isa::x86_64::value_rows::{Group, ScaledWeights, ValueRows};

impl<const H: usize> Group<H> {
    /// Adds to `sums` what `lanes` stand for, codes times weights of query `h`, and the minima.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,fma,avx2")]
    pub(super) fn add(&self, h: usize, lanes: __m512i, sums: &mut HeadLanes<H>) {
        let sum = &mut sums.0[h];
        // SAFETY: memory is read and written through references to arrays of the sizes that the instructions take.
        unsafe {
            let before = _mm512_add_ps(_mm512_loadu_ps(sum.as_ptr()), _mm512_set1_ps(self.least[h]));
            let after = _mm512_fmadd_ps(_mm512_cvtepi32_ps(lanes), _mm512_set1_ps(self.units[h]), before);
            _mm512_storeu_ps(sum.as_mut_ptr(), after);
        }
    }

    /// Sets the weights by `fields` of one group of channels.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vbmi2,avx512vnni,f16c,fma,avx2")]
    fn set(&mut self, fields: &Fields, weights: &ByKey<H>) {
        let mut least = [_mm512_setzero_ps(); H];
        let mut most = least;
        for (h, weights) in weights.iter().enumerate() {
            for (n, weights) in weights.iter().enumerate() {
                // SAFETY: memory is read through a reference to an array of the size that the instruction takes.
                let weight = unsafe { _mm512_loadu_ps(weights.as_ptr()) };
                least[h] = _mm512_fmadd_ps(weight, fields.minimum[n], least[h]);
                // Of both the greater magnitude, without sign.
                most[h] = _mm512_range_ps::<0b1011>(most[h], _mm512_mul_ps(weight, fields.scale[n]));
            }
        }
        self.least = sum_each(least);
        self.units = greatest_each(most).map(|most| most / GREATEST_WORD);
        // SAFETY: likewise.
        let dither = unsafe { _mm512_loadu_ps(DITHER.as_ptr()) };
        for ((weights, pairs), unit) in weights.iter().zip(&mut self.pairs).zip(self.units) {
            let by = _mm512_set1_ps(if unit.is_normal() { 1.0 / unit } else { 0.0 });
            let (pairs, _) = pairs.as_chunks_mut::<{ LANES / 2 }>();
            for ((weights, scale), pairs) in weights.iter().zip(fields.scale).zip(pairs) {
                // SAFETY: memory is read and written through references to arrays of the sizes that the instructions
                // take.
                unsafe {
                    let scaled = _mm512_mul_ps(_mm512_loadu_ps(weights.as_ptr()), scale);
                    let x = _mm512_mul_ps(scaled, by);
                    // Scales are not negative, but for rows that hosts made up.
                    let small = _mm512_cmp_ps_mask::<_CMP_LT_OQ>(x, _mm512_set1_ps(SMALL));
                    let whole = _mm512_cvtps_epi32(_mm512_mask_add_ps(x, small, x, dither));
                    _mm256_storeu_si256(pairs.as_mut_ptr().cast(), _mm512_cvtsepi32_epi16(whole));
                }
            }
        }
    }
}

/// Scale and minimum of one group of a chunk of rows, a lane a row.
#[derive(Clone, Copy)]
struct Fields {
    scale: [__m512; CHUNK / ROWS],
    minimum: [__m512; CHUNK / ROWS],
}

impl<const H: usize> ScaledWeights<H> {
    /// Weights for each group of channels of `rows`.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vbmi2,avx512vnni,f16c,fma,avx2")]
    pub(super) fn weigh(&mut self, rows: &ValueRows<Avx512>, weights: &ByKey<H>) -> &[Group<H>] {
        let groups = &mut self.0[..rows.layout.groups()];
        if let [one] = groups {
            one.set(&fields::<1>(rows, 0)[0], weights);
        } else {
            for (n, groups) in groups.chunks_mut(4).enumerate() {
                let fields = fields::<4>(rows, n);
                groups.iter_mut().zip(&fields).for_each(|(group, fields)| group.set(fields, weights));
            }
        }
        groups
    }
}

/// Those of the `N` groups from number `4 * n` on.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vbmi2,avx512vnni,f16c,fma,avx2")]
fn fields<const N: usize>(rows: &ValueRows<Avx512>, n: usize) -> [Fields; N] {
    let zero = [_mm512_setzero_ps(); CHUNK / ROWS];
    let mut fields = [Fields { scale: zero, minimum: zero }; N];
    let stride = rows.layout.row_bytes();
    for first in (0..rows.count).step_by(ROWS) {
        let words = if first + ROWS <= rows.count {
            // SAFETY: the sixteen rows are there, and have codes behind these fields.
            unsafe { first_words(rows.at(first).add(16 * n), stride) }
        } else {
            let mut copy = [[0u8; 16]; ROWS];
            for (row, copy) in copy.iter_mut().enumerate() {
                // SAFETY: likewise; the last row stands for those after it, which have no weight.
                unsafe { rows.at(first + row).add(16 * n).copy_to_nonoverlapping(copy.as_mut_ptr(), 16) };
            }
            // SAFETY: the copy has sixteen rows of 16 bytes.
            unsafe { first_words(copy.as_ptr().cast(), 16) }
        };
        for (fields, words) in fields.iter_mut().zip(words) {
            fields.scale[first / ROWS] = finite_f16(_mm512_cvtepi32_epi16(words));
            fields.minimum[first / ROWS] = finite_f16(_mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(words)));
        }
    }
    fields
}
