//! Weights of value rows in int16.

use std::arch::x86_64::*;

use super::reduce::{ROWS, first_words, halves};
use super::vector::{Avx2, eight_f16};
use crate::cpu::decode::chunk::{CHUNK, OfHead};
use crate::cpu::isa::vector::{LANES, Vector};
use crate::cpu::isa::x86_64::fixed_point::{DITHER, GREATEST_WORD, SMALL};
use crate::cpu::isa::x86_64::value_rows::{Group, ScaledWeights, ValueRows};

/// Groups whose fields are read together.
const GROUPS: usize = 4;

/// Scale and minimum of one group of a chunk of rows.
#[derive(Clone, Copy)]
struct Fields {
    scale: [[f32; LANES]; CHUNK / LANES],
    minimum: [[f32; LANES]; CHUNK / LANES],
}

/// Sets the weights of each group of channels of `rows`, times its scales, of as many queries as there are `weights`
/// of, and returns them.
#[inline]
#[target_feature(enable = "avx2,fma,f16c,bmi2,popcnt")]
pub(super) fn weigh<'a, const H: usize>(
    v: Avx2,
    rows: &ValueRows<Avx2>,
    weights: &[OfHead],
    scaled: &'a mut ScaledWeights<H>,
) -> &'a [Group<H>] {
    let groups = &mut scaled.0[..rows.layout.groups()];
    if let [one] = groups {
        set(v, one, &fields::<1>(rows, 0)[0], rows.count, weights);
    } else {
        for (n, groups) in groups.chunks_mut(GROUPS).enumerate() {
            let fields = fields::<GROUPS>(rows, n);
            groups.iter_mut().zip(&fields).for_each(|(group, fields)| set(v, group, fields, rows.count, weights));
        }
    }
    groups
}

/// Those of the `N` groups from number `4 * n` on.
#[inline]
#[target_feature(enable = "avx2,fma,f16c,bmi2,popcnt")]
fn fields<const N: usize>(rows: &ValueRows<Avx2>, n: usize) -> [Fields; N] {
    let zero = [[0.0; LANES]; CHUNK / LANES];
    let mut fields = [Fields { scale: zero, minimum: zero }; N];
    for first in (0..rows.count).step_by(ROWS) {
        // The last row stands for those after it, which have no weight.
        let rows = std::array::from_fn(|row| rows.at(first + row).wrapping_add(4 * GROUPS * n));
        // SAFETY: the rows are there, and have codes behind these fields, of which at least 16 bytes.
        let words = unsafe { first_words(rows) };
        for (fields, words) in fields.iter_mut().zip(words) {
            let to = [&mut fields.scale, &mut fields.minimum];
            for (to, x) in to.into_iter().zip(halves(words)) {
                let to = &mut to.as_flattened_mut().as_chunks_mut::<ROWS>().0[first / ROWS];
                // SAFETY: memory is written through a reference to an array of the size that the instruction takes; the
                // function needs what the conversion takes.
                unsafe { _mm256_storeu_ps(to.as_mut_ptr(), eight_f16::<true>(x)) };
            }
        }
    }
    fields
}

/// Sets the weights of a `group` by its `fields`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c,bmi2,popcnt")]
fn set<const H: usize>(v: Avx2, group: &mut Group<H>, fields: &Fields, count: usize, weights: &[OfHead]) {
    let used = count.div_ceil(LANES);
    let sign = _mm256_set1_ps(-0.0);
    let dither = v.load(&DITHER);
    for (h, weights) in weights.iter().enumerate() {
        let (scales, minima) = (&fields.scale[..used], &fields.minimum[..used]);
        let (mut least, mut most) = (v.splat(0.0), v.splat(0.0));
        for ((weights, scale), minimum) in weights.iter().zip(scales).zip(minima) {
            let weight = v.load(weights);
            least = v.mul_add(weight, v.load(minimum), least);
            most = v.max(most, v.mul(weight, v.load(scale)).map(|x| _mm256_andnot_ps(sign, x)));
        }
        group.least[h] = v.sums([least])[0];
        let unit = v.greatest(most) / GREATEST_WORD;
        group.units[h] = unit;
        let by = v.splat(if unit.is_normal() { 1.0 / unit } else { 0.0 });
        let (pairs, _) = group.together[h].as_chunks_mut::<{ LANES / 2 }>();
        for ((weights, scale), pairs) in weights.iter().zip(scales).zip(pairs) {
            let x = v.mul(v.mul(v.load(weights), v.load(scale)), by);
            let mut whole = [_mm256_setzero_si256(); 2];
            for ((whole, x), dither) in whole.iter_mut().zip(x).zip(dither) {
                // Scales are not negative, but for rows that hosts made up.
                let small = _mm256_cmp_ps::<_CMP_LT_OQ>(x, _mm256_set1_ps(SMALL));
                *whole = _mm256_cvtps_epi32(_mm256_add_ps(x, _mm256_and_ps(small, dither)));
            }
            let [a, b] = whole;
            let packed = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packs_epi32(a, b));
            // SAFETY: memory is written through a reference to an array of the size that the instruction takes.
            unsafe { _mm256_storeu_si256(pairs.as_mut_ptr().cast(), packed) };
        }
    }
}
