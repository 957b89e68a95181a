//! Products of key rows in planes of directions with queries, in int16: levels are words as they are, and `vpmaddwd`
//! multiplies them exactly. Which directions meet in a vector is up to what unpacks codes fastest: queries are put in
//! the same places.

use std::arch::x86_64::*;

use super::dot::{Dot, Madd, Words, add_products};
use super::reduce::{ROWS, by_head, sum_within_halves};
use super::vector::Avx2;
use crate::cpu::decode::chunk::{ByKey, HeadLanes};
use crate::cpu::decode::prefetch::Prefetch;
use crate::cpu::isa::vector::{LANES, Vector};
use crate::cpu::isa::x86_64::fixed_point::GREATEST_WORD;
use crate::format::v1::layout::{KeyLayout, MAX_HEAD_DIM};
use crate::format::v3::{LEVELS_2, LEVELS_4, OFFSET, Planes, RANGES};

/// Bytes of a plane that are read at once, by the bits of its codes.
const STEPS: [usize; 3] = [16, 16, 8];

/// Vectors of words that these become.
const VECTORS: [usize; 3] = [1, 2, 2];

/// Bytes beyond the fields that vectors may reach.
const BEYOND: usize = 16;

/// Most bytes that the fields of a row take.
const MOST_BYTES: usize = Planes::CODES_AT + MAX_HEAD_DIM;

/// Levels of 2 bits, as a table of sixteen.
const TWOS: [u8; 16] = {
    let mut levels = [0; 16];
    let mut code = 0;
    while code < LEVELS_2.len() {
        levels[code] = LEVELS_2[code];
        code += 1;
    }
    levels
};

/// `H` queries for rows in planes.
pub(in crate::cpu) struct PlaneKeys<const H: usize> {
    v: Avx2,
    stride: usize,
    /// Bytes that the fields of a row take.
    used: usize,
    /// Where each plane begins, and how often as many bytes of it as are read at once.
    planes: [(usize, usize); 3],
    /// In the order of the vectors of a row.
    queries: Vec<[Words; H]>,
    /// What the products of the offset of levels with the queries come to, in each lane, with the other sign.
    offsets: [__m256i; H],
    /// What 1 stands for in each query.
    units: [f32; H],
}

/// The vector of its plane, and the lane there, that has the code number `code` of the plane number `plane`.
fn place(plane: usize, code: usize) -> (usize, usize) {
    match plane {
        0 => (code / LANES, code % LANES),
        // Low nibbles of sixteen bytes are in the first half of a vector of bytes, high ones in the second; the first
        // eight bytes of each half become one vector of words, the others another one.
        1 => {
            let (byte, high) = (code / 2, code % 2);
            (byte / 16 * 2 + byte % 16 / 8, 8 * high + byte % 8)
        }
        // Each quarter of a vector of bytes has one of the four codes of eight bytes.
        _ => {
            let (byte, quarter) = (code / 4, code % 4);
            (byte / 8 * 2 + quarter % 2, 8 * (quarter / 2) + byte % 8)
        }
    }
}

impl<const H: usize> PlaneKeys<H> {
    /// For `queries`, block by block of directions. `None` if others are to read these rows, or these queries.
    #[target_feature(enable = "avx2,fma,f16c,bmi2,popcnt")]
    pub(in crate::cpu::isa::x86_64) fn new(v: Avx2, layout: &KeyLayout, queries: &[HeadLanes<H>]) -> Option<Self> {
        let planes = layout.planes()?;
        let (kept, counts) = (planes.kept(), planes.counts());
        let bytes = [counts[0], counts[1].div_ceil(2), counts[2].div_ceil(4)];
        let steps: [usize; 3] = std::array::from_fn(|plane| bytes[plane].div_ceil(STEPS[plane]));
        let vectors: [usize; 3] = std::array::from_fn(|plane| steps[plane] * VECTORS[plane]);
        let starts = [0, vectors[0], vectors[0] + vectors[1]];
        let mut words = vec![[Words::ZERO; H]; vectors.iter().sum()];
        let (mut units, mut offsets) = ([0.0; H], [_mm256_setzero_si256(); H]);
        for h in 0..H {
            let mut query = [0.0; MAX_HEAD_DIM];
            let channels = queries.iter().flat_map(|block| block.0[h]);
            query.iter_mut().zip(channels.take(kept)).for_each(|(to, x)| *to = x);
            let mut direction = 0;
            for (count, range) in counts.into_iter().zip(RANGES) {
                query[direction..direction + count].iter_mut().for_each(|x| *x *= range / 127.0);
                direction += count;
            }
            if !query.iter().all(|x| x.is_finite()) {
                return None;
            }
            let unit = query.iter().fold(0.0, |most: f32, x| most.max(x.abs())) / GREATEST_WORD;
            // If it is not normal, all directions are next to nothing.
            if !unit.is_normal() {
                continue;
            }
            units[h] = unit;
            let (by, mut rest) = (1.0 / unit, &query[..]);
            for plane in 0..3 {
                let (of_plane, others) = rest.split_at(counts[plane]);
                for (code, x) in of_plane.iter().enumerate() {
                    let (vector, lane) = place(plane, code);
                    words[starts[plane] + vector][h].0[lane] = (x * by).round_ties_even() as i16;
                }
                rest = others;
            }
            let offset = _mm256_set1_epi16(OFFSET.into());
            for words in &words {
                offsets[h] = _mm256_sub_epi32(offsets[h], _mm256_madd_epi16(offset, words[h].load()));
            }
        }
        let at = [Planes::CODES_AT, planes.fours_at(), planes.twos_at()];
        let planes_at = std::array::from_fn(|plane| (at[plane], steps[plane]));
        let (stride, used) = (layout.row_bytes(), planes.bytes());
        Some(Self { v, stride, used, planes: planes_at, queries: words, offsets, units })
    }

    /// Sets the products of the queries with the `count` first of `rows`.
    #[target_feature(enable = "avx2,fma,f16c,bmi2,popcnt")]
    pub(in crate::cpu::isa::x86_64) fn multiply(
        &self,
        rows: &[u8],
        count: usize,
        prefetch: &Prefetch,
        products: &mut ByKey<H>,
    ) {
        match self.v.vnni() {
            None => self.multiply_by(Madd, rows, count, prefetch, products),
            Some(vnni) => self.multiply_by(vnni, rows, count, prefetch, products),
        }
    }

    #[inline(never)]
    #[target_feature(enable = "avx2,fma,f16c,bmi2,popcnt")]
    fn multiply_by<D: Dot>(&self, dot: D, rows: &[u8], count: usize, prefetch: &Prefetch, products: &mut ByKey<H>) {
        const { assert!(H <= 8) };
        for first in (0..count).step_by(ROWS) {
            let some = ROWS.min(count - first);
            prefetch.at_key(self.v, first);
            let mut scales = [0; 2 * ROWS];
            let mut sums = [[_mm256_setzero_ps(); ROWS]; 2];
            for (n, scale) in scales.as_chunks_mut::<2>().0.iter_mut().enumerate().take(some) {
                let row = &rows[(first + n) * self.stride..];
                *scale = [row[0], row[1]];
                let lanes = if row.len() >= self.used + BEYOND {
                    // SAFETY: so many bytes are there.
                    unsafe { self.multiply_row(dot, row.as_ptr()) }
                } else {
                    let mut copy = [0; MOST_BYTES + BEYOND];
                    copy[..self.used].copy_from_slice(&row[..self.used]);
                    // SAFETY: the copy has the fields, and as many bytes more.
                    unsafe { self.multiply_row(dot, copy.as_ptr()) }
                };
                for (four, lanes) in lanes.chunks(4).enumerate() {
                    let mut of = [_mm256_setzero_ps(); 4];
                    of.iter_mut().zip(lanes).for_each(|(of, &lanes)| *of = _mm256_cvtepi32_ps(lanes));
                    sums[four][n] = sum_within_halves(&of[..lanes.len()]);
                }
            }
            let scales = self.v.eight_f16(&scales);
            for (four, products) in products.chunks_mut(4).enumerate() {
                for (h, (of_head, products)) in by_head(&sums[four]).into_iter().zip(products).enumerate() {
                    let to = &mut products.as_flattened_mut().as_chunks_mut::<ROWS>().0[first / ROWS];
                    // SAFETY: memory is read and written through references to arrays of the size that the
                    // instructions take.
                    unsafe {
                        let unit = _mm256_set1_ps(self.units[4 * four + h]);
                        let unit = _mm256_mul_ps(_mm256_loadu_ps(scales.as_ptr()), unit);
                        _mm256_storeu_ps(to.as_mut_ptr(), _mm256_mul_ps(of_head, unit));
                    }
                }
            }
        }
    }

    /// Products of the queries with the levels of a row, added up in each lane.
    ///
    /// # Safety
    /// The fields of a row and [`BEYOND`] bytes more can be read from `row` on.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c,bmi2,popcnt")]
    unsafe fn multiply_row<D: Dot>(&self, dot: D, row: *const u8) -> [__m256i; H] {
        // As for other keys.
        let second = usize::from(D::VNNI && H <= 4);
        let mut lanes = [self.offsets, [_mm256_setzero_si256(); H]];
        let mut queries = self.queries.iter();
        let mut add = |words: __m256i, lanes: &mut [__m256i; H]| {
            let Some(queries) = queries.next() else { return };
            add_products(dot, lanes, words, queries);
        };
        let [eights, fours, twos] = self.planes;
        let zero = _mm256_setzero_si256();
        // SAFETY: by this function's contract: every step begins within a plane. Tables are arrays of the size that the
        // instruction takes.
        unsafe {
            for step in 0..eights.1 {
                let words = _mm256_cvtepu8_epi16(_mm_loadu_si128(row.add(eights.0 + STEPS[0] * step).cast()));
                add(words, &mut lanes[0]);
            }
            let levels = _mm256_broadcastsi128_si256(_mm_loadu_si128(LEVELS_4.as_ptr().cast()));
            for step in 0..fours.1 {
                let bytes = _mm_loadu_si128(row.add(fours.0 + STEPS[1] * step).cast());
                let codes = _mm256_set_m128i(_mm_srli_epi16::<4>(bytes), bytes);
                let bytes = _mm256_shuffle_epi8(levels, _mm256_and_si256(codes, _mm256_set1_epi8(0x0f)));
                add(_mm256_unpacklo_epi8(bytes, zero), &mut lanes[0]);
                add(_mm256_unpackhi_epi8(bytes, zero), &mut lanes[second]);
            }
            let levels = _mm256_broadcastsi128_si256(_mm_loadu_si128(TWOS.as_ptr().cast()));
            for step in 0..twos.1 {
                let bytes = _mm256_set1_epi64x(row.add(twos.0 + STEPS[2] * step).cast::<i64>().read_unaligned());
                let codes = _mm256_srlv_epi64(bytes, _mm256_setr_epi64x(0, 2, 4, 6));
                let bytes = _mm256_shuffle_epi8(levels, _mm256_and_si256(codes, _mm256_set1_epi8(3)));
                add(_mm256_unpacklo_epi8(bytes, zero), &mut lanes[0]);
                add(_mm256_unpackhi_epi8(bytes, zero), &mut lanes[second]);
            }
        }
        let [mut lanes, others] = lanes;
        if second == 1 {
            lanes.iter_mut().zip(others).for_each(|(lanes, other)| *lanes = _mm256_add_epi32(*lanes, other));
        }
        lanes
    }
}
