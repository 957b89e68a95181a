//! Weighted sums of quantised value rows, in int16.

use std::arch::x86_64::*;

use super::dot::{Dot, Madd, add_product};
use super::reduce::ROWS;
use super::vector::Avx2;
use super::weights::weigh;
use crate::cpu::decode::chunk::{ByKey, CHUNK, HeadLanes};
use crate::cpu::decode::prefetch::Prefetch;
use crate::cpu::isa::vector::LANES;
use crate::cpu::isa::x86_64::value_rows::{Group, ScaledWeights, ValueRows};
use crate::format::v1::layout::{Bits, ValueLayout};

/// Adds the values of the `count` first of `rows` times their `weights` to `sums`, one entry a block of channels, with
/// 4 bits the even and the odd channels of a group apart, as `isa::rows::values::add_rows` does, for the `heads` first
/// queries. For quantised values; `scaled` is room for their weights.
#[target_feature(enable = "avx2,fma,f16c,bmi2,popcnt")]
pub(in crate::cpu::isa::x86_64) fn add_rows<const H: usize>(
    v: Avx2,
    layout: &ValueLayout,
    (rows, count): (&[u8], usize),
    prefetch: &Prefetch,
    (weights, heads): (&ByKey<H>, usize),
    scaled: &mut ScaledWeights<H>,
    sums: &mut [HeadLanes<H>],
) {
    assert!((1..=H).contains(&heads));
    assert!(layout.bits().is_quantised() && sums.len() * LANES == layout.head_dim());
    let rows = &ValueRows::new(v, layout, rows, count, prefetch);
    let groups = (weigh(v, rows, &weights[..heads], scaled), heads);
    match v.vnni() {
        None => add_weighed(Madd, rows, groups, sums),
        Some(vnni) => add_weighed(vnni, rows, groups, sums),
    }
}

/// Adds the values of `rows` times the weights of the `heads` first queries in `groups` to `sums`.
#[inline(never)]
#[target_feature(enable = "avx2,fma,f16c,bmi2,popcnt")]
fn add_weighed<D: Dot, const H: usize>(
    dot: D,
    rows: &ValueRows<Avx2>,
    (groups, heads): (&[Group<H>], usize),
    sums: &mut [HeadLanes<H>],
) {
    let layout = rows.layout;
    match layout.bits() {
        Bits::B8 => {
            for (block, sums) in sums.iter_mut().enumerate() {
                let lanes = add_up::<_, false, H>(
                    dot,
                    rows,
                    layout.codes_at() + LANES * block,
                    block == 0,
                    (&groups[0], heads),
                );
                for (h, lanes) in lanes.into_iter().enumerate() {
                    let (first, second) = sums.0[h].split_first_chunk_mut::<8>().expect("two halves");
                    add(&groups[0], h, lanes, [first, second.first_chunk_mut().expect("the other half")]);
                }
            }
        }
        _ => {
            for (n, [even, odd]) in sums.as_chunks_mut::<2>().0.iter_mut().enumerate() {
                // One for 32 channels each, or one for all.
                let group = &groups[n.min(groups.len() - 1)];
                for half in 0..2 {
                    let at = layout.codes_at() + LANES * n + LANES / 2 * half;
                    let lanes = add_up::<_, true, H>(dot, rows, at, n == 0 && half == 0, (group, heads));
                    for (h, lanes) in lanes.into_iter().enumerate() {
                        let (even, odd) = (even.0[h].as_chunks_mut::<8>().0, odd.0[h].as_chunks_mut::<8>().0);
                        add(group, h, lanes, [&mut even[half], &mut odd[half]]);
                    }
                }
            }
        }
    }
}

/// Adds to `sums` what `lanes` stand for, codes times weights of query `h`, and the minima.
#[inline]
#[target_feature(enable = "avx2,fma,f16c,bmi2,popcnt")]
fn add<const H: usize>(group: &Group<H>, h: usize, lanes: [__m256i; 2], sums: [&mut [f32; 8]; 2]) {
    for (lanes, sums) in lanes.into_iter().zip(sums) {
        // SAFETY: memory is read and written through references to arrays of the sizes that the instructions take.
        unsafe {
            let before = _mm256_add_ps(_mm256_loadu_ps(sums.as_ptr()), _mm256_set1_ps(group.least[h]));
            let after = _mm256_fmadd_ps(_mm256_cvtepi32_ps(lanes), _mm256_set1_ps(group.units[h]), before);
            _mm256_storeu_ps(sums.as_mut_ptr(), after);
        }
    }
}

/// Sums of codes times weights, of sixteen bytes from byte `at` of each row on, channel by channel; of eight bytes of
/// `NIBBLES`, those of low nibbles and then those of high ones. For the `heads` first queries.
#[inline]
#[target_feature(enable = "avx2,fma,f16c,bmi2,popcnt")]
fn add_up<D: Dot, const NIBBLES: bool, const H: usize>(
    dot: D,
    rows: &ValueRows<Avx2>,
    at: usize,
    prefetch: bool,
    (group, heads): (&Group<H>, usize),
) -> [[__m256i; 2]; H] {
    let mut lanes = [[_mm256_setzero_si256(); 2]; H];
    // More sums at once than there are registers for would go through memory. Fewer than eight are too few for an
    // instruction that waits long for the one before it.
    if H >= 4 {
        for (n, lanes) in lanes.as_chunks_mut::<4>().0.iter_mut().enumerate() {
            let prefetch = prefetch && n == 0;
            if heads >= 4 * n + 4 {
                *lanes = add_up_apart::<_, NIBBLES, 4>(dot, rows, at, prefetch, group.together(4 * n));
            } else {
                lanes[..3].copy_from_slice(&add_up_apart::<_, NIBBLES, 3>(
                    dot,
                    rows,
                    at,
                    prefetch,
                    group.together(4 * n),
                ));
            }
        }
    } else if D::VNNI && H == 1 {
        lanes = add_up_some::<_, NIBBLES, 4, H>(dot, rows, at, prefetch, group.together(0));
    } else if D::VNNI && H == 2 {
        lanes = add_up_some::<_, NIBBLES, 2, H>(dot, rows, at, prefetch, group.together(0));
    } else {
        lanes = add_up_some::<_, NIBBLES, 1, H>(dot, rows, at, prefetch, group.together(0));
    }
    lanes
}

/// As [`add_up`], of some queries. Apart, because the compiler spills sums where it has this inlined.
#[inline(never)]
#[target_feature(enable = "avx2,fma,f16c,bmi2,popcnt")]
fn add_up_apart<D: Dot, const NIBBLES: bool, const N: usize>(
    dot: D,
    rows: &ValueRows<Avx2>,
    at: usize,
    prefetch: bool,
    pairs: &[[i32; CHUNK / 2]; N],
) -> [[__m256i; 2]; N] {
    add_up_some::<_, NIBBLES, 1, N>(dot, rows, at, prefetch, pairs)
}

/// As [`add_up`], of as many queries as have weights in `pairs`; with so many `SUMS` of each number, which are added up
/// at last.
#[inline]
#[target_feature(enable = "avx2,fma,f16c,bmi2,popcnt")]
fn add_up_some<D: Dot, const NIBBLES: bool, const SUMS: usize, const N: usize>(
    dot: D,
    rows: &ValueRows<Avx2>,
    at: usize,
    prefetch: bool,
    pairs: &[[i32; CHUNK / 2]; N],
) -> [[__m256i; 2]; N] {
    let (count, stride) = (rows.count, rows.layout.row_bytes());
    assert!(count <= CHUNK && at + if NIBBLES { LANES / 2 } else { LANES } <= stride);
    let mut lanes = [[[_mm256_setzero_si256(); 2]; N]; SUMS];
    let add_pair = |lanes: &mut [[__m256i; 2]; N], a: *const u8, b: *const u8, n: usize| {
        // Bytes of both keys beside each other, each in a word: those of eight channels, or of sixteen in nibbles.
        // SAFETY: the rows have these bytes, as the assertion says.
        let codes = unsafe {
            if NIBBLES {
                let bytes = _mm_unpacklo_epi8(_mm_loadl_epi64(a.cast()), _mm_loadl_epi64(b.cast()));
                let words = _mm256_cvtepu8_epi16(bytes);
                [_mm256_and_si256(words, _mm256_set1_epi16(0x0f)), _mm256_srli_epi16::<4>(words)]
            } else {
                let (a, b) = (_mm_loadu_si128(a.cast()), _mm_loadu_si128(b.cast()));
                [_mm_unpacklo_epi8(a, b), _mm_unpackhi_epi8(a, b)].map(|bytes| _mm256_cvtepu8_epi16(bytes))
            }
        };
        for (lanes, pairs) in lanes.iter_mut().zip(pairs) {
            let weights = _mm256_set1_epi32(pairs[n]);
            for (lanes, codes) in lanes.iter_mut().zip(codes) {
                *lanes = add_product(dot, *lanes, codes, weights);
            }
        }
    };
    let row = |key: usize| rows.at(key).wrapping_add(at);
    let whole = count / ROWS * ROWS;
    for first in (0..whole).step_by(ROWS) {
        if prefetch {
            rows.prefetch(first);
        }
        let mut a = row(first);
        for n in 0..ROWS / 2 {
            add_pair(&mut lanes[n % SUMS], a, a.wrapping_add(stride), first / 2 + n);
            a = a.wrapping_add(2 * stride);
        }
    }
    for key in (whole..count).step_by(2) {
        // A last key without a second has it twice, once with no weight.
        add_pair(&mut lanes[0], row(key), row(key + 1), key / 2);
    }
    let mut all = lanes[0];
    for lanes in &lanes[1..] {
        for (all, lanes) in all.as_flattened_mut().iter_mut().zip(lanes.as_flattened()) {
            *all = _mm256_add_epi32(*all, *lanes);
        }
    }
    all
}
