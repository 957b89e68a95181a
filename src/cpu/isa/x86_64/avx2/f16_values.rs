//! Weighted sums of float16 value rows, in float32.

use std::arch::x86_64::*;

use super::vector::{Avx2, eight_f16};
use crate::cpu::decode::chunk::{ByKey, CHUNK, HeadLanes};
use crate::cpu::decode::prefetch::Prefetch;
use crate::cpu::isa::vector::{LANES, Vector};
use crate::cpu::isa::x86_64::value_rows::ValueRows;
use crate::format::v1::layout::ValueLayout;

/// Adds the values of the `count` first of `rows` times their `weights` to `sums`, one entry a block of channels. For
/// values of float16.
#[inline(never)]
#[target_feature(enable = "avx2,fma,f16c,bmi2,popcnt")]
pub(super) fn add_rows<const H: usize>(
    v: Avx2,
    layout: &ValueLayout,
    (rows, count): (&[u8], usize),
    prefetch: &Prefetch,
    weights: &ByKey<H>,
    sums: &mut [HeadLanes<H>],
) {
    assert!(!layout.bits().is_quantised() && sums.len() * LANES == layout.head_dim());
    let rows = &ValueRows::new(v, layout, rows, count, prefetch);
    for (block, sums) in sums.iter_mut().enumerate() {
        // More sums at once than there are registers for would go through memory.
        if H == 8 {
            for (n, sums) in sums.0.as_chunks_mut::<4>().0.iter_mut().enumerate() {
                add_block(v, rows, block, block == 0 && n == 0, &weights.as_chunks::<4>().0[n], sums);
            }
        } else {
            add_block(v, rows, block, block == 0, weights, &mut sums.0);
        }
    }
}

/// Adds a block of channels to the `sums` of `N` queries.
#[inline]
#[target_feature(enable = "avx2,fma,f16c,bmi2,popcnt")]
fn add_block<const N: usize>(
    v: Avx2,
    rows: &ValueRows<Avx2>,
    block: usize,
    prefetch: bool,
    weights: &ByKey<N>,
    sums: &mut [[f32; LANES]; N],
) {
    let mut lanes = add_up::<false, N>(rows, block, prefetch, weights);
    // Infinity and NaN, which are rare, show in the sums.
    if !v.all_finite(&lanes) {
        lanes = add_up::<true, N>(rows, block, false, weights);
    }
    for (lanes, sums) in lanes.into_iter().zip(sums) {
        v.store(v.add(v.load(sums), lanes), sums);
    }
}

/// Sums of a block of channels times weights. Without `SPECIAL`, infinity and NaN stay what they are.
#[inline]
#[target_feature(enable = "avx2,fma,f16c,bmi2,popcnt")]
fn add_up<const SPECIAL: bool, const N: usize>(
    rows: &ValueRows<Avx2>,
    block: usize,
    prefetch: bool,
    weights: &ByKey<N>,
) -> [[__m256; 2]; N] {
    let (count, stride) = (rows.count, rows.layout.row_bytes());
    assert!(count <= CHUNK && 2 * LANES * (block + 1) <= stride);
    let weights: [&[f32; CHUNK]; N] = weights.each_ref().map(|w| w.as_flattened().first_chunk().expect("a chunk"));
    // Where there are few sums, keys take turns with several of each, so that one need not wait for the last.
    let turns = if N == 1 {
        4
    } else if N == 2 {
        2
    } else {
        1
    };
    let mut lanes = [[[_mm256_setzero_ps(); 2]; N]; 4];
    let add_key = |lanes: &mut [[__m256; 2]; N], row: *const u8, key: usize| {
        let at = row.wrapping_add(2 * LANES * block);
        // SAFETY: the row has these bytes, as the assertion says; the function needs what the conversion takes.
        let values = unsafe {
            let eight = |n: usize| eight_f16::<SPECIAL>(_mm_loadu_si128(at.add(LANES * n).cast()));
            [eight(0), eight(1)]
        };
        for (lanes, weights) in lanes.iter_mut().zip(weights) {
            let weight = _mm256_set1_ps(weights[key]);
            for (lanes, value) in lanes.iter_mut().zip(values) {
                *lanes = _mm256_fmadd_ps(value, weight, *lanes);
            }
        }
    };
    let whole = count / turns * turns;
    let mut row = rows.at(0);
    for first in (0..whole).step_by(turns) {
        if prefetch {
            rows.prefetch(first);
        }
        for (n, lanes) in lanes[..turns].iter_mut().enumerate() {
            add_key(lanes, row, first + n);
            row = row.wrapping_add(stride);
        }
    }
    for key in whole..count {
        add_key(&mut lanes[0], rows.at(key), key);
    }
    let mut sums = lanes[0];
    for lanes in &lanes[1..turns] {
        for (sums, lanes) in sums.as_flattened_mut().iter_mut().zip(lanes.as_flattened()) {
            *sums = _mm256_add_ps(*sums, *lanes);
        }
    }
    sums
}
