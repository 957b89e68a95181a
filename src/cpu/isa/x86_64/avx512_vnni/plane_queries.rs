//! Queries in the order in which words of key rows in planes are multiplied with them.

use std::arch::x86_64::*;
use std::ops::Range;

use crate::cpu::decode::chunk::HeadLanes;
use crate::cpu::isa::vector::LANES;
use crate::format::v1::layout::MAX_HEAD_DIM;
use crate::format::v3::{OFFSET, Planes, RANGES};

/// Bytes of a word.
pub(super) const WORD: usize = 4;

/// Codes of a byte, by plane, and which powers of 2 these are.
pub(super) const PER_BYTE: [usize; 3] = [1, 2, 4];
const POWER: [u32; 3] = [0, 1, 2];

/// Most queries at once.
pub(super) const MOST: usize = 8;

/// The greatest magnitude of a query's direction, in its own units: 127 * 256 + 127.
const GREATEST_QUERY: f32 = 32_639.0;

/// A plane in a row, in whole words.
pub(super) struct Place {
    /// Its first byte; the scale of the row, in the first plane that has codes.
    pub(super) from: usize,
    /// Numbers of its words among those of all planes.
    pub(super) words: Range<usize>,
    /// Numbers of the vectors of levels that these become: as many of each word as a byte has codes, of the last one
    /// maybe fewer.
    pub(super) vectors: Range<usize>,
}

impl Place {
    /// All planes of a row.
    fn of(planes: &Planes) -> [Self; 3] {
        let (at, counts, mut before) = (begins(planes), planes.counts(), (0, 0));
        std::array::from_fn(|plane| {
            let place = Self::new(plane, at[plane], counts[plane], before);
            before = (place.words.end, place.vectors.end);
            place
        })
    }

    /// Of `count` codes in the plane number `plane`, from byte `at` of a row on; and the words and vectors before.
    fn new(plane: usize, at: usize, count: usize, (words, vectors): (usize, usize)) -> Self {
        let (from, per_byte) = (if at == Planes::CODES_AT { 0 } else { at }, PER_BYTE[plane]);
        if count == 0 {
            return Self { from, words: words..words, vectors: vectors..vectors };
        }
        let codes = (at - from) * per_byte + count;
        let before_last = (codes - 1) / (WORD * per_byte);
        let of_last = (codes - before_last * WORD * per_byte).min(per_byte);
        let (words_end, vectors_end) = (words + before_last + 1, vectors + before_last * per_byte + of_last);
        Self { from, words: words..words_end, vectors: vectors..vectors_end }
    }

    /// The vector, and the byte of its lanes, that has the level of the code number `code` of the plane number `plane`,
    /// which begins at byte `at`.
    #[inline]
    fn level(&self, plane: usize, at: usize, code: usize) -> (usize, usize) {
        // Without divisions, which take as long as a row.
        let byte = at - self.from + (code >> POWER[plane]);
        (self.vectors.start + ((byte / WORD) << POWER[plane]) + (code & (PER_BYTE[plane] - 1)), byte % WORD)
    }
}

/// The first byte of each plane.
fn begins(planes: &Planes) -> [usize; 3] {
    [Planes::CODES_AT, planes.fours_at(), planes.twos_at()]
}

/// Up to [`MOST`] queries, in int16, as two halves of int8.
pub(super) struct PlaneQueries {
    pub(super) places: [Place; 3],
    /// Queries that are not zero, and those before them; one at least.
    pub(super) heads: usize,
    /// For each vector of levels, of each of the queries the high halves of four directions, then the low ones.
    pub(super) halves: Vec<[u8; WORD]>,
    /// What the products of the offset of levels with the queries come to, with the other sign.
    pub(super) offsets: [i32; MOST],
    /// What 1 stands for in each query.
    pub(super) units: [f32; MOST],
}

impl PlaneQueries {
    /// Of `queries`, block by block of directions. `None` if a direction is not finite.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    pub(super) fn new<const H: usize>(planes: &Planes, queries: &[HeadLanes<H>]) -> Option<Self> {
        const { assert!(H <= MOST) };
        let (kept, counts, at) = (planes.kept(), planes.counts(), begins(planes));
        let places = Place::of(planes);
        // What a level is worth in each direction, next to the scale of a row; dropped ones nothing.
        let mut worth = [[0.0; LANES]; MAX_HEAD_DIM / LANES];
        let mut rest = &mut worth.as_flattened_mut()[..kept];
        for (range, count) in RANGES.into_iter().zip(counts) {
            rest.split_off_mut(..count).expect("as many as are kept").fill(range / 127.0);
        }
        let mut rounded = [[0; MAX_HEAD_DIM]; H];
        let (mut units, mut heads) = ([0.0; MOST], 1);
        for (h, rounded) in rounded.iter_mut().enumerate() {
            units[h] = round(queries, h, &worth, rounded)?;
            if units[h] != 0.0 {
                heads = h + 1;
            }
        }
        let mut halves = vec![[0; WORD]; 2 * heads * places[2].vectors.end];
        let mut offsets = [0; MOST];
        for (h, rounded) in rounded.iter().enumerate().take(heads) {
            offsets[h] = -i32::from(OFFSET) * rounded[..kept].iter().map(|&x| i32::from(x)).sum::<i32>();
            let mut rest = &rounded[..kept];
            for (plane, place) in places.iter().enumerate() {
                let (codes, others) = rest.split_at(counts[plane]);
                for (code, &x) in codes.iter().enumerate() {
                    let (vector, byte) = place.level(plane, at[plane], code);
                    let low = x as i8;
                    let of_vector = 2 * heads * vector;
                    halves[of_vector + h][byte] = ((x - i16::from(low)) >> 8) as u8;
                    halves[of_vector + heads + h][byte] = low as u8;
                }
                rest = others;
            }
        }
        Some(Self { places, heads, halves, offsets, units })
    }
}

/// The query of head `h` times what a level is `worth`, as multiples of the number that is returned; that is zero where
/// the query is next to nothing. `None` if a direction is not finite.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn round<const H: usize>(
    queries: &[HeadLanes<H>],
    h: usize,
    worth: &[[f32; LANES]],
    rounded: &mut [i16; MAX_HEAD_DIM],
) -> Option<f32> {
    let direction = |x: &HeadLanes<H>, worth: &[f32; LANES]| {
        // SAFETY: memory is read through references to arrays of the size that the instruction takes.
        unsafe { _mm512_mul_ps(_mm512_loadu_ps(x.0[h].as_ptr()), _mm512_loadu_ps(worth.as_ptr())) }
    };
    let (mut most, mut none) = (_mm512_setzero_ps(), _mm512_setzero_ps());
    for (x, worth) in queries.iter().zip(worth) {
        let x = direction(x, worth);
        most = _mm512_max_ps(most, _mm512_abs_ps(x));
        none = _mm512_fmadd_ps(x, _mm512_setzero_ps(), none);
    }
    // NaN where a direction is not finite; the greatest may hide that.
    if _mm512_reduce_add_ps(none) != 0.0 {
        return None;
    }
    let unit = _mm512_reduce_max_ps(most) / GREATEST_QUERY;
    // If it is not normal, all directions are next to nothing.
    if !unit.is_normal() {
        return Some(0.0);
    }
    let by = _mm512_set1_ps(1.0 / unit);
    for ((x, worth), rounded) in queries.iter().zip(worth).zip(rounded.as_chunks_mut::<LANES>().0) {
        let whole = _mm512_cvtps_epi32(_mm512_mul_ps(direction(x, worth), by));
        // SAFETY: memory is written through a reference to an array of the size that the instruction takes.
        unsafe { _mm256_storeu_si256(rounded.as_mut_ptr().cast(), _mm512_cvtepi32_epi16(whole)) };
    }
    Some(unit)
}
