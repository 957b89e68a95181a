//! Products of float16 key rows with queries, in float32.

use std::arch::x86_64::*;

use super::expand::places;
use super::reduce::{ROWS, by_head, sum_within_halves};
use super::vector::{Avx2, eight_f16};
use crate::cpu::decode::chunk::{ByKey, CHUNK, HeadLanes};
use crate::cpu::decode::kernels::KeyRows;
use crate::cpu::decode::prefetch::Prefetch;
use crate::cpu::isa::rows::keys::truncate;
use crate::cpu::isa::vector::{LANES, Vector};
use crate::format::v1::layout::{Bits, MAX_HEAD_DIM};

/// Bytes beyond the fields of a row that its vectors may reach.
const BEYOND: usize = LANES;

/// Most bytes that the fields of a row take.
const MOST_BYTES: usize = MAX_HEAD_DIM / 4 + 4 + 2 * MAX_HEAD_DIM;

/// `H` queries for rows of float16.
pub(in crate::cpu) struct F16Keys<'a, const H: usize> {
    v: Avx2,
    rows: KeyRows<'a>,
    /// Block by block.
    queries: &'a [HeadLanes<H>],
    /// c, block by block.
    scale: &'a [[f32; LANES]],
}

impl<'a, const H: usize> F16Keys<'a, H> {
    /// For `queries` and channel scale c, block by block. `None` if others are to read these rows.
    pub(super) fn of(
        v: Avx2,
        rows: KeyRows<'a>,
        queries: &'a [HeadLanes<H>],
        scale: &'a [[f32; LANES]],
    ) -> Option<Self> {
        let d = rows.layout.head_dim();
        assert!(queries.len() * LANES == d && scale.len() * LANES == d);
        (rows.layout.bits() == Bits::B16).then_some(Self { v, rows, queries, scale })
    }

    /// Products of the queries with the first of the `count` rows. Returns how many were read: fewer where a row has
    /// infinity or NaN.
    #[inline(never)]
    #[target_feature(enable = "avx2,fma,f16c,bmi2,popcnt")]
    pub(super) fn multiply(&self, rows: &[u8], count: usize, prefetch: &Prefetch, products: &mut ByKey<H>) -> usize {
        const { assert!(H <= 8) };
        assert!(count <= CHUNK);
        let stride = self.rows.layout.row_bytes();
        for first in (0..count).step_by(ROWS) {
            let some = ROWS.min(count - first);
            prefetch.at_key(self.v, first);
            let mut sums = [[_mm256_setzero_ps(); ROWS]; 2];
            for n in 0..some {
                let row = &rows[(first + n) * stride..];
                let lanes = if self.is_usual(row) {
                    // SAFETY: the row is usual.
                    unsafe { self.multiply_row(row.as_ptr()) }
                } else {
                    self.multiply_copy(row)
                };
                for (four, lanes) in lanes.chunks(4).enumerate() {
                    sums[four][n] = sum_within_halves(lanes);
                }
            }
            for (four, products) in products.chunks_mut(4).enumerate() {
                let by_head = by_head(&sums[four]);
                // Infinity and NaN show in the products.
                let zeros = by_head.map(|x| _mm256_mul_ps(x, _mm256_setzero_ps()));
                if !self.v.all_finite(&[[zeros[0], zeros[1]], [zeros[2], zeros[3]]]) {
                    return first;
                }
                for (of_head, products) in by_head.into_iter().zip(products) {
                    let to = &mut products.as_flattened_mut().as_chunks_mut::<ROWS>().0[first / ROWS];
                    // SAFETY: memory is written through a reference to an array of the size that the instruction takes.
                    unsafe { _mm256_storeu_ps(to.as_mut_ptr(), of_head) };
                }
            }
        }
        count
    }

    /// Bytes that the fields of a row take.
    fn used(&self) -> usize {
        self.rows.layout.codes_at() + 2 * self.rows.layout.kept()
    }

    /// Whether vectors stay within `row` and the bytes that follow it, and no more channels are marked than kept.
    #[inline]
    #[target_feature(enable = "popcnt")]
    fn is_usual(&self, row: &[u8]) -> bool {
        let (words, rest) = row[..self.rows.layout.mask_bytes()].as_chunks::<8>();
        let marked = words.iter().map(|word| u64::from_le_bytes(*word).count_ones()).sum::<u32>()
            + rest.iter().map(|byte| byte.count_ones()).sum::<u32>();
        row.len() >= self.used() + BEYOND && marked as usize <= self.rows.layout.kept()
    }

    /// As [`Self::multiply_row`], of the last row, which ends with its memory, or one with too many channels marked.
    #[cold]
    #[inline(never)]
    #[target_feature(enable = "avx2,fma,f16c,bmi2,popcnt")]
    fn multiply_copy(&self, row: &[u8]) -> [__m256; H] {
        let mut copy = [0; MOST_BYTES + BEYOND];
        copy[..self.used()].copy_from_slice(&row[..self.used()]);
        truncate(&mut copy[..self.rows.layout.mask_bytes()], self.rows.layout.kept());
        // SAFETY: the copy reaches beyond the fields as far as vectors do, and no more channels are marked than kept.
        unsafe { self.multiply_row(copy.as_ptr()) }
    }

    /// Products of the queries with the channels of `row`, added up in each lane.
    ///
    /// # Safety
    /// The fields of a row and [`BEYOND`] bytes more can be read from `row` on, and no more channels are marked than
    /// kept.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c,bmi2,popcnt")]
    unsafe fn multiply_row(&self, row: *const u8) -> [__m256; H] {
        let KeyRows { layout, recover } = self.rows;
        // How far each lane's bit of a word is from its sign.
        let to_sign = _mm256_setr_epi32(31, 30, 29, 28, 27, 26, 25, 24);
        let sign = _mm256_set1_ps(-0.0);
        let mut lanes = [[_mm256_setzero_ps(); H]; 2];
        // SAFETY: by this function's contract. Two planes of a bit for each channel begin a row, with 4 bytes or more
        // behind them; the function needs what the conversions take.
        unsafe {
            let recovery = match recover {
                true => eight_f16::<true>(_mm_set1_epi16(row.add(layout.scalars_at()).cast::<i16>().read_unaligned())),
                false => _mm256_setzero_ps(),
            };
            let mut codes = row.add(layout.codes_at());
            for (n, (queries, scale)) in self.queries.iter().zip(self.scale).enumerate() {
                for half in 0..2 {
                    let byte = 2 * n + half;
                    let mask = *row.add(byte);
                    let places = places(mask);
                    let words = _mm_shuffle_epi8(_mm_loadu_si128(codes.cast()), places);
                    codes = codes.add(2 * u32::from(mask).count_ones() as usize);
                    let signs = row.add(layout.mask_bytes() + byte).cast::<i32>().read_unaligned();
                    let negative = _mm256_sllv_epi32(_mm256_set1_epi32(signs), to_sign);
                    let negative = _mm256_and_ps(_mm256_castsi256_ps(negative), sign);
                    let scale = _mm256_loadu_ps(scale.as_ptr().add(8 * half));
                    let pruned = _mm256_xor_ps(_mm256_mul_ps(recovery, scale), negative);
                    // Places have the highest bit where channels are pruned.
                    let is_pruned = _mm256_castsi256_ps(_mm256_cvtepi16_epi32(places));
                    let channels = _mm256_blendv_ps(_mm256_cvtph_ps(words), pruned, is_pruned);
                    // As many sums as are needed for one not to wait for the last, and as there are registers for.
                    let lanes = &mut lanes[if H <= 4 { half } else { 0 }];
                    for (lanes, query) in lanes.iter_mut().zip(&queries.0) {
                        let query = _mm256_load_ps(query.as_ptr().add(8 * half));
                        *lanes = _mm256_fmadd_ps(channels, query, *lanes);
                    }
                }
            }
        }
        let [mut sums, others] = lanes;
        if H <= 4 {
            sums.iter_mut().zip(others).for_each(|(sum, other)| *sum = _mm256_add_ps(*sum, other));
        }
        sums
    }
}
