//! Weights of value rows: in int16 for rows of 8 bits, in uint8 for rows of 4.

use std::arch::x86_64::*;

use crate::cpu::decode::chunk::{CHUNK, HeadLanes, OfHead};
use crate::cpu::isa::vector::LANES;
use crate::cpu::isa::x86_64::avx512::reduce::{ROWS, first_words, greatest_each, sum_each};
use crate::cpu::isa::x86_64::avx512::vector::{Avx512, finite_f16};
use crate::cpu::isa::x86_64::fixed_point::{DITHER, GREATEST_WORD, SMALL};
use crate::cpu::isa::x86_64::value_rows::{Group, ScaledWeights, ValueRows};
use crate::format::v1::layout::Bits;

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

    /// Sets the weights by `fields` of one group of channels, for codes of eight bits.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vbmi2,avx512vnni,f16c,fma,avx2")]
    fn set_words(&mut self, fields: &Fields, weights: &[OfHead]) {
        let (sums, most) = sums_and_most::<H>(&fields.minimum, &fields.scale, weights);
        self.least = sum_each(sums);
        self.units = most.map(|most| most / GREATEST_WORD);
        // SAFETY: memory is read through a reference to an array of the size that the instruction takes.
        let dither = unsafe { _mm512_loadu_ps(DITHER.as_ptr()) };
        for ((weights, pairs), unit) in weights.iter().zip(&mut self.together).zip(self.units) {
            let by = inverse(unit);
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

    /// The same for codes of four bits, of which [`CENTRE`] is taken before they are multiplied. No scale is negative.
    ///
    /// What a weight loses to rounding is multiplied by what it weighs. That must be the value, not the code less the
    /// centre: what the codes of a row have in common, the rotation back puts into one channel. So minimum and centre
    /// are weighed by the rounded weights too, as multiples of the scale. What is left of them, little but for rows
    /// that hosts made up, is weighed in float32.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vbmi2,avx512vnni,f16c,fma,avx2")]
    fn set_bytes(&mut self, fields: &Fields, weights: &[OfHead]) {
        let zero = [_mm512_setzero_ps(); CHUNK / ROWS];
        let (mut ratios, mut rest) = (zero, zero);
        for (n, (&minimum, &scale)) in fields.minimum.iter().zip(&fields.scale).enumerate() {
            let centre = _mm512_fmadd_ps(scale, _mm512_set1_ps(CENTRE), minimum);
            let ratio = _mm512_mul_ps(centre, _mm512_rcp14_ps(scale));
            // Of a number and NaN, the number.
            let most = _mm512_min_ps(ratio, _mm512_set1_ps(CENTRE));
            ratios[n] = _mm512_max_ps(most, _mm512_set1_ps(-CENTRE));
            rest[n] = _mm512_fnmadd_ps(scale, ratios[n], centre);
        }
        let (mut sums, most) = sums_and_most::<H>(&rest, &fields.scale, weights);
        self.units = most.map(|most| most / (GREATEST_BYTE * CODE));
        // SAFETY: memory is read through a reference to an array of the size that the instruction takes.
        let dither = unsafe { _mm512_loadu_ps(DITHER.as_ptr()) };
        for (h, (weights, fours)) in weights.iter().zip(&mut self.together).enumerate() {
            let unit = self.units[h] * CODE;
            let by = inverse(unit);
            let (fours, _) = fours.as_chunks_mut::<{ LANES / 4 }>();
            let mut common = _mm512_setzero_ps();
            for (n, (weights, fours)) in weights.iter().zip(fours).enumerate() {
                // SAFETY: memory is read and written through references to arrays of the sizes that the instructions
                // take.
                unsafe {
                    let scaled = _mm512_mul_ps(_mm512_loadu_ps(weights.as_ptr()), fields.scale[n]);
                    let whole = _mm512_cvtps_epi32(_mm512_fmadd_ps(scaled, by, dither));
                    common = _mm512_fmadd_ps(_mm512_cvtepi32_ps(whole), ratios[n], common);
                    _mm_storeu_si128(fours.as_mut_ptr().cast(), _mm512_cvtusepi32_epi8(whole));
                }
            }
            sums[h] = _mm512_fmadd_ps(common, _mm512_set1_ps(unit), sums[h]);
        }
        self.least = sum_each(sums);
    }
}

/// The sums of `weights` times `constants`, spread over the lanes of a vector, and the greatest magnitude of a weight
/// times its scale.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vbmi2,avx512vnni,f16c,fma,avx2")]
fn sums_and_most<const H: usize>(constants: &ByRow, scale: &ByRow, weights: &[OfHead]) -> ([__m512; H], [f32; H]) {
    let mut sums = [_mm512_setzero_ps(); H];
    let mut most = sums;
    for (h, weights) in weights.iter().enumerate() {
        for (n, weights) in weights.iter().enumerate() {
            // SAFETY: memory is read through a reference to an array of the size that the instruction takes.
            let weight = unsafe { _mm512_loadu_ps(weights.as_ptr()) };
            sums[h] = _mm512_fmadd_ps(weight, constants[n], sums[h]);
            // Of both the greater magnitude, without sign.
            most[h] = _mm512_range_ps::<0b1011>(most[h], _mm512_mul_ps(weight, scale[n]));
        }
    }
    (sums, greatest_each(most))
}

/// One over `unit`; nothing where that is next to nothing.
#[inline]
#[target_feature(enable = "avx512f")]
fn inverse(unit: f32) -> __m512 {
    _mm512_set1_ps(if unit.is_normal() { 1.0 / unit } else { 0.0 })
}

/// What is taken from codes of four bits, so that they lie about zero.
const CENTRE: f32 = 8.0;
/// What 1 of such a code is where it is multiplied: it stands in the high half of a byte.
const CODE: f32 = 16.0;
/// The greatest weight in uint8, before [`DITHER`].
const GREATEST_BYTE: f32 = 254.5;

/// A number for each row of a chunk.
type ByRow = [__m512; CHUNK / ROWS];

/// Scale and minimum of one group of a chunk of rows, a lane a row.
#[derive(Clone, Copy)]
struct Fields {
    scale: ByRow,
    minimum: ByRow,
}

impl<const H: usize> ScaledWeights<H> {
    /// Weights for each group of channels of `rows`, of as many queries as there are `weights` of. `None` if others are
    /// to read them: if they have 4 bits and a negative scale, as no encoder writes.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vbmi2,avx512vnni,f16c,fma,avx2")]
    pub(super) fn weigh(&mut self, rows: &ValueRows<Avx512>, weights: &[OfHead]) -> Option<&[Group<H>]> {
        let groups = &mut self.0[..rows.layout.groups()];
        let bytes = rows.layout.bits() == Bits::B4;
        let set = |group: &mut Group<H>, fields: &Fields| {
            if !bytes {
                group.set_words(fields, weights);
            } else if fields.scale.iter().all(|&scale| none_negative(scale)) {
                group.set_bytes(fields, weights);
            } else {
                return false;
            }
            true
        };
        let set = if let [one] = &mut groups[..] {
            set(one, &fields::<1>(rows, 0)[0])
        } else {
            groups.chunks_mut(4).enumerate().all(|(n, groups)| {
                let fields = fields::<4>(rows, n);
                groups.iter_mut().zip(&fields).all(|(group, fields)| set(group, fields))
            })
        };
        set.then_some(groups)
    }
}

/// Whether no number is negative.
#[inline]
#[target_feature(enable = "avx512f")]
fn none_negative(x: __m512) -> bool {
    _mm512_cmp_ps_mask::<_CMP_LT_OQ>(x, _mm512_setzero_ps()) == 0
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
