//! Products of key rows in planes of directions with queries, in int8, for sixteen rows at once.
//!
//! Rows are transposed as they are stored: four bytes of each of sixteen rows become a vector, a lane a row. What lies
//! in such a word is the same in every row, so one instruction makes four levels of each row of it, and `vpdpbusd`
//! multiplies them, unsigned bytes, with four directions of a query, which all lanes share. A lane ends as the product
//! of its row: nothing is left to be added up across lanes. A query is int16 in two halves of int8, but for directions
//! of 2 bits, whose codes have lost so much that int8 is enough.

use std::arch::x86_64::*;
use std::mem::MaybeUninit;

use super::plane_queries::{MOST, PER_BYTE, Place, PlaneQueries, WORD};
use crate::cpu::decode::chunk::{CHUNK, HeadLanes, OfHead, no_products};
use crate::cpu::decode::prefetch::{MANY, Prefetch};
use crate::cpu::isa::vector::LANES;
use crate::cpu::isa::x86_64::avx512::reduce::{ROWS, first_words, groups_within};
use crate::cpu::isa::x86_64::avx512::vector::{Avx512, finite_f16};
use crate::format::v1::layout::{KeyLayout, MAX_HEAD_DIM};
use crate::format::v3::{LEVELS_2, LEVELS_4, Planes};

/// Bytes of a row that are transposed together.
const BLOCK: usize = 4 * WORD;

/// Bytes beyond the fields of a row that its blocks may reach.
const BEYOND: usize = BLOCK;

/// Most bytes that the fields of a row take.
const MOST_BYTES: usize = Planes::CODES_AT + MAX_HEAD_DIM;

/// Most words of a row: each plane may end within one, and the last block within four.
const MOST_WORDS: usize = MOST_BYTES / WORD + 3 + 3;

/// A level for each six bits, of which the lowest are a code.
#[repr(C, align(64))]
struct Levels([u8; 64]);

impl Levels {
    const FOURS: Self = Self::of(LEVELS_4);
    const TWOS: Self = Self::of(LEVELS_2);

    const fn of<const N: usize>(book: [u8; N]) -> Self {
        let mut levels = [0; 64];
        let mut bits = 0;
        while bits < levels.len() {
            levels[bits] = book[bits % N];
            bits += 1;
        }
        Self(levels)
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn load(&self) -> __m512i {
        // SAFETY: memory is read through a reference to an array of the size and alignment that the instruction takes.
        unsafe { _mm512_load_si512(self.0.as_ptr().cast()) }
    }
}

/// Queries for rows in planes.
pub(in crate::cpu) struct PlaneKeys {
    v: Avx512,
    stride: usize,
    /// Bytes that the fields of a row take.
    used: usize,
    queries: PlaneQueries,
}

impl PlaneKeys {
    /// For `queries`, block by block of directions. `None` if others are to read these rows, or these queries.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    pub(super) fn new<const H: usize>(v: Avx512, layout: &KeyLayout, queries: &[HeadLanes<H>]) -> Option<Self> {
        let planes = layout.planes()?;
        let queries = PlaneQueries::new(planes, queries)?;
        Some(Self { v, stride: layout.row_bytes(), used: planes.bytes(), queries })
    }

    /// Products of the queries with the `count` first of `rows`.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vnni")]
    pub(super) fn products(&self, rows: &[u8], count: usize, prefetch: &Prefetch, products: &mut [OfHead]) {
        let stride = self.stride;
        // Sixteen at a time, as long as blocks stay within the rows.
        let groups = groups_within(rows, stride, self.used + BEYOND, count);
        self.multiply((rows, stride), groups, Some(prefetch), products);
        for first in (groups * ROWS..count).step_by(ROWS) {
            self.copied(&rows[first * stride..], ROWS.min(count - first), first / ROWS, products);
        }
        products[self.queries.heads..].fill([[0.0; LANES]; CHUNK / LANES]);
    }

    /// As `products`, for at most sixteen rows, where blocks would reach beyond the rows or there are fewer than
    /// sixteen. The products become those of the `group`th sixteen.
    #[cold]
    #[inline(never)]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vnni")]
    fn copied(&self, rows: &[u8], count: usize, group: usize, products: &mut [OfHead]) {
        let mut copy = [0; ROWS * MOST_BYTES + BEYOND];
        for (copy, row) in copy.chunks_exact_mut(self.used).zip(rows.chunks(self.stride)).take(count) {
            copy.copy_from_slice(&row[..self.used]);
        }
        let mut of_copy = no_products::<MOST>();
        self.multiply((&copy, self.used), 1, None, &mut of_copy);
        for (products, of_copy) in products.iter_mut().zip(of_copy) {
            products[group] = of_copy[0];
        }
    }

    /// Products with the first of `rows`, `stride` bytes apart, `groups` times sixteen of them.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vnni")]
    fn multiply(
        &self,
        (rows, stride): (&[u8], usize),
        groups: usize,
        prefetch: Option<&Prefetch>,
        products: &mut [OfHead],
    ) {
        if groups == 0 {
            return;
        }
        assert!(groups <= CHUNK / ROWS && rows.len() >= (groups * ROWS - 1) * stride + self.used + BEYOND);
        let rows = Rows { v: self.v, first: rows.as_ptr(), stride, groups, prefetch };
        // SAFETY: as the assertion says.
        unsafe {
            match self.queries.heads {
                1 => multiply_groups::<1>(&rows, &self.queries, products),
                2 => multiply_groups::<2>(&rows, &self.queries, products),
                3 => multiply_groups::<3>(&rows, &self.queries, products),
                4 => multiply_groups::<4>(&rows, &self.queries, products),
                5 => multiply_groups::<5>(&rows, &self.queries, products),
                6 => multiply_groups::<6>(&rows, &self.queries, products),
                7 => multiply_groups::<7>(&rows, &self.queries, products),
                _ => multiply_groups::<8>(&rows, &self.queries, products),
            }
        }
    }
}

/// `groups` times sixteen rows, `stride` bytes apart.
struct Rows<'a> {
    v: Avx512,
    first: *const u8,
    stride: usize,
    groups: usize,
    prefetch: Option<&'a Prefetch<'a>>,
}

/// Sets the products of `N` queries with rows.
///
/// # Safety
/// From the beginning of each row on, its fields and [`BEYOND`] bytes can be read.
#[inline(never)]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vnni")]
unsafe fn multiply_groups<const N: usize>(rows: &Rows, queries: &PlaneQueries, products: &mut [OfHead]) {
    let &Rows { v, first, stride, groups, prefetch } = rows;
    let offsets = queries.offsets.each_ref().map(|offsets| offsets.first_chunk::<N>().expect("all queries"));
    let units = queries.units.each_ref().map(|units| units.first_chunk::<N>().expect("all queries"));
    // Uninitialised: filling it would take as long as reading many rows.
    let mut words = [const { MaybeUninit::uninit() }; MOST_WORDS];
    for group in 0..groups {
        if let Some(prefetch) = prefetch {
            (0..ROWS).step_by(MANY).for_each(|n| prefetch.at_key(v, group * ROWS + n));
        }
        // SAFETY: by this function's contract.
        let words =
            unsafe { transpose_rows(&queries.places, first.wrapping_add(group * ROWS * stride), stride, &mut words) };
        let of_offset = |kind: usize, h: usize| _mm512_set1_epi32(offsets[kind][h]);
        let mut high = [_mm512_setzero_si512(); N];
        let mut low: [_; N] = std::array::from_fn(|h| of_offset(0, h));
        let mut whole: [_; N] = std::array::from_fn(|h| of_offset(1, h));
        let [eights, fours, twos] = &queries.places;
        let halves = queries.halves.as_chunks::<N>().0.as_chunks::<2>().0;
        // Adds the levels of one code of each byte, times both halves of the queries.
        macro_rules! add {
            ($levels:expr, $halves:expr) => {
                let (levels, [of_high, of_low]) = ($levels, $halves);
                for h in 0..N {
                    let [of_high, of_low] = [of_high, of_low].map(|of| _mm512_set1_epi32(i32::from_le_bytes(of[h])));
                    high[h] = _mm512_dpbusd_epi32(high[h], levels, of_high);
                    low[h] = _mm512_dpbusd_epi32(low[h], levels, of_low);
                }
            };
        }
        for (&levels, of) in words[eights.words.clone()].iter().zip(&halves[eights.vectors.clone()]) {
            add!(levels, of);
        }
        let of_words = halves[fours.vectors.clone()].chunks(PER_BYTE[1]);
        for (&codes, of_word) in words[fours.words.clone()].iter().zip(of_words) {
            add!(levels_4(codes), &of_word[0]);
            if let Some(of) = of_word.get(1) {
                add!(levels_4(_mm512_srli_epi32::<4>(codes)), of);
            }
        }
        let of_words = queries.wholes.as_chunks::<N>().0.chunks(PER_BYTE[2]);
        for (&codes, of_word) in words[twos.words.clone()].iter().zip(of_words) {
            let mut codes = codes;
            for of in of_word {
                let levels = levels_2(codes);
                for h in 0..N {
                    whole[h] = _mm512_dpbusd_epi32(whole[h], levels, _mm512_set1_epi32(i32::from_le_bytes(of[h])));
                }
                codes = _mm512_srli_epi32::<2>(codes);
            }
        }
        let scales = finite_f16(_mm512_cvtepi32_epi16(words[0]));
        for (h, products) in products[..N].iter_mut().enumerate() {
            let sum = _mm512_cvtepi32_ps(_mm512_add_epi32(_mm512_slli_epi32::<8>(high[h]), low[h]));
            let sum = _mm512_mul_ps(sum, _mm512_set1_ps(units[0][h]));
            let sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(whole[h]), _mm512_set1_ps(units[1][h]), sum);
            // SAFETY: memory is written through a reference to an array of the size that the instruction takes.
            unsafe { _mm512_storeu_ps(products[group].as_mut_ptr(), _mm512_mul_ps(sum, scales)) };
        }
    }
}

/// The words of sixteen rows, `stride` bytes apart, plane after plane, a lane a row.
///
/// # Safety
/// As for [`multiply_groups`].
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn transpose_rows<'a>(
    places: &[Place; 3],
    first: *const u8,
    stride: usize,
    words: &'a mut [MaybeUninit<__m512i>; MOST_WORDS],
) -> &'a [__m512i] {
    for place in places {
        let mut at = place.from;
        for n in place.words.clone().step_by(BLOCK / WORD) {
            // SAFETY: by this function's contract: the block begins within the fields.
            let block = unsafe { first_words(first.wrapping_add(at), stride) };
            for (to, word) in words[n..n + BLOCK / WORD].iter_mut().zip(block) {
                to.write(word);
            }
            at += BLOCK;
        }
    }
    let words = &words[..places[2].words.end];
    // SAFETY: these have been set, and lie in memory as what they hold does.
    unsafe { std::slice::from_raw_parts(words.as_ptr().cast(), words.len()) }
}

/// The levels of codes of 4 bits that bytes begin with. What follows them may be anything.
#[inline]
#[target_feature(enable = "avx512f,avx512vbmi")]
fn levels_4(codes: __m512i) -> __m512i {
    _mm512_permutexvar_epi8(codes, Levels::FOURS.load())
}

/// The same of 2 bits.
#[inline]
#[target_feature(enable = "avx512f,avx512vbmi")]
fn levels_2(codes: __m512i) -> __m512i {
    _mm512_permutexvar_epi8(codes, Levels::TWOS.load())
}
