//! Weighted sums of value rows.

use std::arch::x86_64::*;

use super::words::{self, CHANNELS, dot, dot_bytes};
use crate::cpu::decode::chunk::{ByKey, HeadLanes};
use crate::cpu::decode::prefetch::Prefetch;
use crate::cpu::isa::rows::values::add_rows as add_any_rows;
use crate::cpu::isa::vector::LANES;
use crate::cpu::isa::x86_64::avx512::reduce::transpose_quarters;
use crate::cpu::isa::x86_64::avx512::vector::Avx512;
use crate::cpu::isa::x86_64::value_rows::{Group, ScaledWeights, ValueRows};
use crate::format::v1::layout::{Bits, ValueLayout};

/// Blocks of channels added to at once.
const BLOCKS: usize = CHANNELS / LANES;

/// Whether [`add_rows`] reads rows of `layout`.
pub(super) fn takes(layout: &ValueLayout) -> bool {
    layout.bits() != Bits::B16 && words::takes(layout.head_dim())
}

/// Adds the values of the `count` first rows times their `weights` to `sums`, one entry a block of channels, with 4
/// bits the even and the odd channels of a group apart, as `isa::rows::values::add_rows` does, for the `heads` first
/// queries. For quantised values; `scaled` is room for their weights.
#[target_feature(enable = "avx512dq,avx512vl,avx512vbmi,avx512vbmi2,avx512vnni,bmi2,popcnt")]
pub(super) fn add_rows<const H: usize>(
    v: Avx512,
    layout: &ValueLayout,
    (bytes_of_rows, count): (&[u8], usize),
    prefetch: &Prefetch,
    (weights, heads): (&ByKey<H>, usize),
    scaled: &mut ScaledWeights<H>,
    sums: &mut [HeadLanes<H>],
) {
    assert!((1..=H).contains(&heads));
    let rows = ValueRows::new(v, layout, bytes_of_rows, count, prefetch);
    let Some(groups) = scaled.weigh(&rows, &weights[..heads]) else {
        return add_any_rows(v, layout, (bytes_of_rows, count), prefetch, weights, sums);
    };
    for (part, sums) in sums.as_chunks_mut::<BLOCKS>().0.iter_mut().enumerate() {
        // One for all channels, or one for 32 channels each.
        let of_part = [2 * part, 2 * part + 1].map(|n| &groups[n.min(groups.len() - 1)]);
        for first in (0..heads).step_by(4) {
            match (layout.bits(), heads - first) {
                (Bits::B8, 1) => bytes::<H, 1>(&rows, part, &groups[0], first, sums),
                (Bits::B8, 2) => bytes::<H, 2>(&rows, part, &groups[0], first, sums),
                (Bits::B8, 3) => bytes::<H, 3>(&rows, part, &groups[0], first, sums),
                (Bits::B8, _) => bytes::<H, 4>(&rows, part, &groups[0], first, sums),
                (_, 1) => nibbles::<H, 1>(&rows, part, of_part, first, sums),
                (_, 2) => nibbles::<H, 2>(&rows, part, of_part, first, sums),
                (_, 3) => nibbles::<H, 3>(&rows, part, of_part, first, sums),
                _ => nibbles::<H, 4>(&rows, part, of_part, first, sums),
            }
        }
    }
}

/// Adds up bytes of 64 channels, the `part`th, for `N` queries from number `first` on.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vbmi2,avx512vnni,fma,avx2")]
fn bytes<const H: usize, const N: usize>(
    rows: &ValueRows<Avx512>,
    part: usize,
    group: &Group<H>,
    first: usize,
    sums: &mut [HeadLanes<H>; BLOCKS],
) {
    assert!((part + 1) * CHANNELS <= rows.layout.head_dim());
    let at = rows.layout.codes_at() + part * CHANNELS;
    let pairs = group.together::<N>(first);
    let zero = _mm512_setzero_si512();
    let mut lanes = [[zero; BLOCKS]; N];
    for n in 0..rows.count.div_ceil(2) {
        if part == 0 && first == 0 {
            rows.prefetch(2 * n);
        }
        // A last key without a second has it twice, once with no weight.
        // SAFETY: a row has this many codes.
        let (a, b) = unsafe {
            let codes = |key: usize| _mm512_loadu_si512(rows.at(key).add(at).cast());
            (codes(2 * n), codes(2 * n + 1))
        };
        // In each quarter, the codes of four channels in words, those of both keys beside each other.
        let (low, high) = (_mm512_unpacklo_epi8(a, b), _mm512_unpackhi_epi8(a, b));
        let blocks = [
            _mm512_unpacklo_epi8(low, zero),
            _mm512_unpackhi_epi8(low, zero),
            _mm512_unpacklo_epi8(high, zero),
            _mm512_unpackhi_epi8(high, zero),
        ];
        for (lanes, pairs) in lanes.iter_mut().zip(pairs) {
            let weights = _mm512_set1_epi32(pairs[n]);
            for (lanes, codes) in lanes.iter_mut().zip(blocks) {
                *lanes = dot(*lanes, codes, weights);
            }
        }
    }
    for (h, lanes) in lanes.into_iter().enumerate() {
        for (sums, lanes) in sums.iter_mut().zip(transpose_quarters(lanes)) {
            group.add(first + h, lanes, sums);
        }
    }
}

/// Adds up nibbles of 64 channels, the `part`th, that have two `groups`, for `N` queries from number `first` on.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vbmi2,avx512vnni,fma,avx2")]
fn nibbles<const H: usize, const N: usize>(
    rows: &ValueRows<Avx512>,
    part: usize,
    groups: [&Group<H>; 2],
    first: usize,
    sums: &mut [HeadLanes<H>; BLOCKS],
) {
    assert!((part + 1) * CHANNELS <= rows.layout.head_dim());
    let at = rows.layout.codes_at() + part * CHANNELS / 2;
    let weights = groups.map(|group| group.together::<N>(first));
    // SAFETY: memory is read through references to arrays of the sizes that the instructions take.
    let places =
        unsafe { [_mm512_loadu_si512(FOUR_KEYS[0].as_ptr().cast()), _mm512_loadu_si512(FOUR_KEYS[1].as_ptr().cast())] };
    let (high, sign) = (_mm512_set1_epi8(0xf0u8 as i8), _mm512_set1_epi8(0x80u8 as i8));
    let mut lanes = [[[_mm512_setzero_si512(); 2]; N]; 2];
    for n in 0..rows.count.div_ceil(4) {
        if part == 0 && first == 0 {
            rows.prefetch(4 * n);
        }
        // Keys after the last one have it again, without weight.
        // SAFETY: a row has this many codes.
        let [a, b] = [4 * n, 4 * n + 2].map(|key| unsafe {
            let codes = |key: usize| _mm256_loadu_si256(rows.at(key).add(at).cast());
            _mm512_inserti64x4::<1>(_mm512_castsi256_si512(codes(key)), codes(key + 1))
        });
        for ((lanes, weights), places) in lanes.iter_mut().zip(weights).zip(places) {
            let codes = _mm512_permutex2var_epi8(a, places, b);
            // The code less 8, in the high half of an int8.
            let centred = |codes| _mm512_ternarylogic_epi32::<{ AND_THEN_XOR }>(codes, high, sign);
            let blocks = [centred(_mm512_slli_epi16::<4>(codes)), centred(codes)];
            for (lanes, weights) in lanes.iter_mut().zip(weights) {
                let weights = _mm512_set1_epi32(weights[n]);
                for (lanes, codes) in lanes.iter_mut().zip(blocks) {
                    *lanes = dot_bytes(*lanes, weights, codes);
                }
            }
        }
    }
    for ((group, lanes), sums) in groups.into_iter().zip(lanes).zip(sums.as_chunks_mut::<2>().0) {
        for (h, lanes) in lanes.into_iter().enumerate() {
            for (sums, lanes) in sums.iter_mut().zip(lanes) {
                group.add(first + h, lanes, sums);
            }
        }
    }
}

/// `(a & b) ^ c`, bit by bit.
const AND_THEN_XOR: i32 = 0b0110_1010;

/// Where a lane has its byte of each of four keys, in two vectors of 32 bytes of two keys each, for each group of
/// channels.
const FOUR_KEYS: [[u8; CHANNELS]; 2] = {
    let mut at = [[0; CHANNELS]; 2];
    let mut n = 0;
    while n < 2 * CHANNELS {
        let (group, lane, key) = (n / CHANNELS, n % CHANNELS / 4, n % 4);
        at[group][n % CHANNELS] = (CHANNELS / 2 * key + LANES * group + lane) as u8;
        n += 1;
    }
    at
};
