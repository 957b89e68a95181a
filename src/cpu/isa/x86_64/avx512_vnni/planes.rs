//! Products of key rows in planes of directions with queries, in int8.
//!
//! 64 directions become a vector of unsigned bytes, their levels, by one sequence of instructions, whatever planes they
//! are in: tables say which byte of the row has a direction's code, and which bits of it. A query is int16 in two
//! halves of int8, so that `vpdpbusd` multiplies levels as they are, four at once in each lane, exactly.

use std::arch::x86_64::*;

use super::words::dot_bytes;
use crate::cpu::decode::chunk::{ByKey, CHUNK, HeadLanes, no_products};
use crate::cpu::decode::prefetch::Prefetch;
use crate::cpu::isa::vector::LANES;
use crate::cpu::isa::x86_64::avx512::reduce::{
    ROWS, RowSums, first_words, groups_within, sum_integers_within_quarters,
};
use crate::cpu::isa::x86_64::avx512::vector::{Avx512, finite_f16};
use crate::format::v1::layout::{KeyLayout, MAX_HEAD_DIM};
use crate::format::v3::{LEVELS_2, LEVELS_4, OFFSET, Planes, RANGES};

/// Directions of a vector.
const DIRECTIONS: usize = 64;

/// Most vectors of a row.
const MOST_VECTORS: usize = MAX_HEAD_DIM / DIRECTIONS;

/// Bytes beyond the fields of a row that its vectors may reach.
const BEYOND: usize = DIRECTIONS;

/// Most bytes that the fields of a row take.
const MOST_BYTES: usize = Planes::CODES_AT + MAX_HEAD_DIM;

/// Rows that are multiplied with a vector of queries once it is loaded.
const ROWS_AT_ONCE: usize = 2;

/// The greatest magnitude of a query's direction, in its own units: 127 * 256 + 127.
const GREATEST_QUERY: f32 = 32_639.0;

/// Where [`LEVELS_2`] begin in [`LEVELS`].
const TWOS_AT: u8 = LEVELS_4.len() as u8;

/// Levels of codes of 4 bits, and of 2 bits behind them.
const LEVELS: Bytes = {
    let mut levels = [0; DIRECTIONS];
    let mut code = 0;
    while code < LEVELS_4.len() {
        levels[code] = LEVELS_4[code];
        code += 1;
    }
    while code < LEVELS_4.len() + LEVELS_2.len() {
        levels[code] = LEVELS_2[code - LEVELS_4.len()];
        code += 1;
    }
    Bytes(levels)
};

/// A vector of bytes.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Bytes([u8; DIRECTIONS]);

impl Bytes {
    const ZERO: Self = Self([0; DIRECTIONS]);

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn load(&self) -> __m512i {
        // SAFETY: memory is read through a reference to an array of the size and alignment that the instruction takes.
        unsafe { _mm512_load_si512(self.0.as_ptr().cast()) }
    }
}

/// Where 64 directions have their codes in a row, and what these stand for. Directions without a code read as 0.
struct Table {
    /// The first byte that they need; each takes at most one more than the one before.
    from: usize,
    /// The byte of each, from there on.
    bytes: Bytes,
    /// Where the bits of its code begin, within each eight of these bytes.
    shifts: Bytes,
    /// These bits.
    masks: Bytes,
    /// Where its levels begin in [`LEVELS`].
    books: Bytes,
    /// Directions that have levels there. Codes of 8 bits are levels.
    coded: u64,
}

impl Table {
    const EMPTY: Self =
        Self { from: 0, bytes: Bytes::ZERO, shifts: Bytes::ZERO, masks: Bytes::ZERO, books: Bytes::ZERO, coded: 0 };

    /// Of the directions from number `first` on. Without branches, so that vectors do it: each part of a cache makes
    /// its own tables.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    fn new(planes: &Planes, first: usize) -> Self {
        let mut table = Self::EMPTY;
        let [eight, four, two] = planes.counts();
        // Directions from the first on, of 8 bits, of these and 4 bits, and of all.
        let [eights, fours, all] =
            [eight, eight + four, eight + four + two].map(|end| end.saturating_sub(first).min(DIRECTIONS) as u8);
        // Numbers of the first direction in its plane if it is of 8, 4 and 2 bits. What is not, wraps around.
        let codes = [first, first.wrapping_sub(eight), first.wrapping_sub(eight + four)].map(|code| code as u8);
        let planes_at = [Planes::CODES_AT, planes.fours_at(), planes.twos_at()];
        table.from = match (eights, fours) {
            (1.., _) => planes_at[0] + first,
            (_, 1..) => planes_at[1] + (first - eight) / 2,
            _ => planes_at[2] + (first - eight - four) / 4,
        };
        let planes_at = planes_at.map(|at| at.wrapping_sub(table.from) as u8);
        for lane in 0..DIRECTIONS {
            let n = lane as u8;
            let [of_8, of_4, of_2] = codes.map(|code| code.wrapping_add(n));
            let (is_8, is_4, is_code) = (n < eights, n < fours, n < all);
            let pick = |of_8: u8, of_4: u8, of_2: u8| match (is_8, is_4) {
                (true, _) => of_8,
                (_, true) => of_4,
                _ => of_2,
            };
            let [at_8, at_4, at_2] = planes_at;
            table.bytes.0[lane] =
                pick(at_8.wrapping_add(of_8), at_4.wrapping_add(of_4 / 2), at_2.wrapping_add(of_2 / 4));
            table.shifts.0[lane] = n % 8 * 8 + pick(0, of_4 % 2 * 4, of_2 % 4 * 2);
            table.masks.0[lane] = if is_code { pick(0xff, 0x0f, 0x03) } else { 0 };
            table.books.0[lane] = if is_code { pick(0, 0, TWOS_AT) } else { 0 };
        }
        let below = |count: u8| u64::MAX.checked_shr(DIRECTIONS as u32 - u32::from(count)).unwrap_or(0);
        table.coded = below(all) & !below(eights);
        table
    }

    /// The levels of the directions of `row`.
    ///
    /// # Safety
    /// The fields of a row and [`BEYOND`] bytes more can be read from `row` on.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi")]
    unsafe fn levels(&self, row: *const u8) -> __m512i {
        // SAFETY: by this function's contract: the first byte is one of the fields.
        let bytes = unsafe { _mm512_loadu_si512(row.add(self.from).cast()) };
        let bytes = _mm512_permutexvar_epi8(self.bytes.load(), bytes);
        let codes = _mm512_multishift_epi64_epi8(self.shifts.load(), bytes);
        // The bits of a code, and those of its book beside them.
        let places = _mm512_ternarylogic_epi32::<0b1110_1010>(codes, self.masks.load(), self.books.load());
        _mm512_mask_permutexvar_epi8(places, self.coded, places, LEVELS.load())
    }
}

/// `H` queries for rows in planes.
pub(in crate::cpu) struct PlaneKeys<'a, const H: usize> {
    v: Avx512,
    stride: usize,
    /// Bytes that the fields of a row take.
    used: usize,
    /// 64 directions each.
    tables: Vec<Table>,
    /// For the high and then the low half of int16, for each table, those of all heads beside each other.
    queries: Vec<Bytes>,
    /// What the products of the offset of levels with the queries come to, in each lane, with the other sign.
    offsets: [__m512i; H],
    /// What 1 stands for in each query.
    units: [f32; H],
    scratch: &'a mut PlaneScratch,
}

/// Scratch space for the rows of one chunk.
pub(in crate::cpu) struct PlaneScratch(RowSums);

impl Default for PlaneScratch {
    #[inline(always)]
    fn default() -> Self {
        Self(RowSums::uninit())
    }
}

impl<'a, const H: usize> PlaneKeys<'a, H> {
    /// For `queries`, block by block of directions. `None` if others are to read these rows, or these queries.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vnni")]
    pub(super) fn new(
        v: Avx512,
        layout: &KeyLayout,
        queries: &[HeadLanes<H>],
        scratch: &'a mut PlaneScratch,
    ) -> Option<Self> {
        let planes = layout.planes()?;
        let kept = planes.kept();
        let tables: Vec<Table> = (0..kept).step_by(DIRECTIONS).map(|first| Table::new(planes, first)).collect();
        // What a level is worth in each direction, next to the scale of a row; dropped ones nothing.
        let mut worth = [[0.0; LANES]; MAX_HEAD_DIM / LANES];
        let [eight, four, _] = planes.counts();
        for (range, plane) in RANGES.into_iter().zip([0..eight, eight..eight + four, eight + four..kept]) {
            worth.as_flattened_mut()[plane].fill(range / 127.0);
        }
        let mut units = [0.0; H];
        let mut bytes = vec![Bytes::ZERO; 2 * tables.len() * H];
        let (high, low) = bytes.split_at_mut(tables.len() * H);
        for (h, unit) in units.iter_mut().enumerate() {
            // SAFETY: memory is read and written through references to arrays of the sizes that the instructions
            // take.
            unsafe {
                let (mut most, mut none) = (_mm512_setzero_ps(), _mm512_setzero_ps());
                let direction = |x: &HeadLanes<H>, worth: &[f32; LANES]| {
                    _mm512_mul_ps(_mm512_loadu_ps(x.0[h].as_ptr()), _mm512_loadu_ps(worth.as_ptr()))
                };
                for (x, worth) in queries.iter().zip(&worth) {
                    let x = direction(x, worth);
                    most = _mm512_max_ps(most, _mm512_abs_ps(x));
                    none = _mm512_fmadd_ps(x, _mm512_setzero_ps(), none);
                }
                // NaN where a direction is not finite; the greatest may hide that.
                if _mm512_reduce_add_ps(none) != 0.0 {
                    return None;
                }
                *unit = _mm512_reduce_max_ps(most) / GREATEST_QUERY;
                // If it is not normal, all directions are next to nothing.
                if !unit.is_normal() {
                    *unit = 0.0;
                    continue;
                }
                let by = _mm512_set1_ps(1.0 / *unit);
                for (n, (x, worth)) in queries.iter().zip(&worth).take(kept.div_ceil(LANES)).enumerate() {
                    let whole = _mm512_cvtps_epi32(_mm512_mul_ps(direction(x, worth), by));
                    let lower = _mm512_srai_epi32::<24>(_mm512_slli_epi32::<24>(whole));
                    let upper = _mm512_srai_epi32::<8>(_mm512_sub_epi32(whole, lower));
                    let (vector, part) = (n * LANES / DIRECTIONS * H + h, n % (DIRECTIONS / LANES));
                    for (half, x) in [(&mut *high, upper), (&mut *low, lower)] {
                        let to = &mut half[vector].0.as_chunks_mut::<LANES>().0[part];
                        _mm_storeu_si128(to.as_mut_ptr().cast(), _mm512_cvtepi32_epi8(x));
                    }
                }
            }
        }
        let offset = _mm512_set1_epi8(OFFSET as i8);
        let offsets = std::array::from_fn(|h| {
            let sum = |half: &[Bytes]| {
                let of_head = half.iter().skip(h).step_by(H);
                of_head.fold(_mm512_setzero_si512(), |sum, query| dot_bytes(sum, offset, query.load()))
            };
            let sums = _mm512_add_epi32(_mm512_slli_epi32::<8>(sum(high)), sum(low));
            _mm512_sub_epi32(_mm512_setzero_si512(), sums)
        });
        let (stride, used) = (layout.row_bytes(), planes.bytes());
        Some(Self { v, stride, used, tables, queries: bytes, offsets, units, scratch })
    }

    /// Products of the queries with the `count` first of `rows`.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vnni")]
    pub(super) fn products(&mut self, rows: &[u8], count: usize, prefetch: &Prefetch, products: &mut ByKey<H>) {
        let stride = self.stride;
        // Sixteen at a time, as long as vectors stay within the rows.
        let groups = groups_within(rows, stride, self.reach(), count);
        self.multiply((rows, stride), groups, Some(prefetch), products);
        for first in (groups * ROWS..count).step_by(ROWS) {
            self.copied(&rows[first * stride..], ROWS.min(count - first), first / ROWS, products);
        }
    }

    /// Bytes from the beginning of a row on that its vectors may read.
    fn reach(&self) -> usize {
        self.used + BEYOND
    }

    /// As `products`, for at most sixteen rows, where vectors would reach beyond the rows or there are fewer than
    /// sixteen. The products become those of the `group`th sixteen.
    #[cold]
    #[inline(never)]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vnni")]
    fn copied(&mut self, rows: &[u8], count: usize, group: usize, products: &mut ByKey<H>) {
        let mut copy = [0; ROWS * MOST_BYTES + BEYOND];
        for (copy, row) in copy.chunks_exact_mut(self.used).zip(rows.chunks(self.stride)).take(count) {
            copy.copy_from_slice(&row[..self.used]);
        }
        let mut of_copy = no_products();
        self.multiply((&copy, self.used), 1, None, &mut of_copy);
        for (products, of_copy) in products.iter_mut().zip(of_copy) {
            products[group] = of_copy[0];
        }
    }

    /// Products with the first of `rows`, `stride` bytes apart, `groups` times sixteen of them.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vnni")]
    fn multiply(
        &mut self,
        (rows, stride): (&[u8], usize),
        groups: usize,
        prefetch: Option<&Prefetch>,
        products: &mut ByKey<H>,
    ) {
        const { assert!(H <= 8) };
        let count = groups * ROWS;
        if count == 0 {
            return;
        }
        assert!(count <= CHUNK && rows.len() >= (count - 1) * stride + self.reach());
        // SAFETY: as the assertion says.
        unsafe {
            match self.tables.len() {
                1 => self.multiply_keys::<1>((rows.as_ptr(), stride), count, prefetch),
                2 => self.multiply_keys::<2>((rows.as_ptr(), stride), count, prefetch),
                3 => self.multiply_keys::<3>((rows.as_ptr(), stride), count, prefetch),
                _ => self.multiply_keys::<MOST_VECTORS>((rows.as_ptr(), stride), count, prefetch),
            }
        }
        for group in 0..groups {
            // SAFETY: these rows are there, with more than 16 bytes each, and their sums have been set.
            unsafe {
                let [words, ..] = first_words(rows.as_ptr().add(group * ROWS * stride), stride);
                let scales = finite_f16(_mm512_cvtepi32_epi16(words));
                self.scratch.0.finish(group, scales, &self.units, products);
            }
        }
    }

    /// Sets the sums of the products with `N` times 64 directions of each of `count` rows.
    ///
    /// # Safety
    /// The count is a multiple of [`ROWS_AT_ONCE`], there are not more rows than a chunk has, and from the beginning of
    /// each on, its fields and [`BEYOND`] bytes can be read.
    #[inline(never)]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vnni")]
    unsafe fn multiply_keys<const N: usize>(
        &mut self,
        (rows, stride): (*const u8, usize),
        count: usize,
        prefetch: Option<&Prefetch>,
    ) {
        let tables: &[Table; N] = self.tables.first_chunk().expect("a table for every 64 directions");
        let (high, low) = self.queries.split_at(N * H);
        let [high, low] = [high, low].map(|half| half.as_chunks::<H>().0.first_chunk::<N>().expect("all heads"));
        for row in (0..count).step_by(ROWS_AT_ONCE) {
            if let Some(prefetch) = prefetch {
                for n in 0..ROWS_AT_ONCE {
                    prefetch.at_key(self.v, row + n);
                }
            }
            let mut levels = [[_mm512_setzero_si512(); N]; ROWS_AT_ONCE];
            for (n, levels) in levels.iter_mut().enumerate() {
                for (levels, table) in levels.iter_mut().zip(tables) {
                    // SAFETY: by this function's contract.
                    *levels = unsafe { table.levels(rows.add((row + n) * stride)) };
                }
            }
            let mut lanes = [[_mm512_setzero_si512(); H]; ROWS_AT_ONCE];
            add_products(&levels, high, &mut lanes);
            for lanes in &mut lanes {
                for (lanes, offset) in lanes.iter_mut().zip(&self.offsets) {
                    *lanes = _mm512_add_epi32(_mm512_slli_epi32::<8>(*lanes), *offset);
                }
            }
            add_products(&levels, low, &mut lanes);
            for (n, lanes) in lanes.iter().enumerate() {
                for (four, lanes) in lanes.chunks(4).enumerate() {
                    self.scratch.0.set(four, row + n, _mm512_cvtepi32_ps(sum_integers_within_quarters(lanes)));
                }
            }
        }
    }
}

/// Adds products of the levels of each row with one half of the queries to its lanes.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vnni")]
fn add_products<const N: usize, const H: usize>(
    levels: &[[__m512i; N]; ROWS_AT_ONCE],
    queries: &[[Bytes; H]; N],
    lanes: &mut [[__m512i; H]; ROWS_AT_ONCE],
) {
    for n in 0..N {
        for h in 0..H {
            let query = queries[n][h].load();
            for (lanes, levels) in lanes.iter_mut().zip(levels) {
                lanes[h] = dot_bytes(lanes[h], levels[n], query);
            }
        }
    }
}
