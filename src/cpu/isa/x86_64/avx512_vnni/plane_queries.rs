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

/// The greatest magnitudes of a query's direction, in its own units: of 8 and 4 bits in two halves, 127 * 256 + 127, of
/// 2 bits in one.
const GREATEST_TWICE: f32 = 32_639.0;
const GREATEST_ONCE: f32 = 127.0;

/// A plane in a row, in whole words.
pub(super) struct Place {
    /// Its first byte; the scale of the row, in the first plane that has codes.
    pub(super) from: usize,
    /// Numbers of its words among those of all planes.
    pub(super) words: Range<usize>,
    /// Numbers of the vectors of levels that these become, among those that queries of as many halves meet: as many of
    /// each word as a byte has codes, of the last one maybe fewer.
    pub(super) vectors: Range<usize>,
}

impl Place {
    /// All planes of a row.
    fn of(planes: &Planes) -> [Self; 3] {
        let (at, counts, mut before) = (begins(planes), planes.counts(), (0, 0));
        std::array::from_fn(|plane| {
            let place = Self::new(plane, at[plane], counts[plane], before);
            before = (place.words.end, if plane == 1 { 0 } else { place.vectors.end });
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

/// Up to [`MOST`] queries: directions of 8 and 4 bits in int16, as two halves of int8. Those of 2 bits in int8: the
/// squared error of a score that comes of that is about a 500th of the one that comes of such codes.
pub(super) struct PlaneQueries {
    pub(super) places: [Place; 3],
    /// Queries that are not zero, and those before them; one at least.
    pub(super) heads: usize,
    /// For each vector of levels of 8 and 4 bits, of each of the queries the high halves of four directions, then the
    /// low ones.
    pub(super) halves: Vec<[u8; WORD]>,
    /// For each vector of levels of 2 bits, four directions of each of the queries.
    pub(super) wholes: Vec<[u8; WORD]>,
    /// What the products of the offset of levels with the queries come to, with the other sign: of halves, and others.
    pub(super) offsets: [[i32; MOST]; 2],
    /// What 1 stands for in each query: in directions that are in halves, and in others.
    pub(super) units: [[f32; MOST]; 2],
}

impl PlaneQueries {
    /// Of `queries`, block by block of directions. `None` if a direction is not finite.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    pub(super) fn new<const H: usize>(planes: &Planes, queries: &[HeadLanes<H>]) -> Option<Self> {
        const { assert!(H <= MOST) };
        let (kept, counts, at) = (planes.kept(), planes.counts(), begins(planes));
        let places = Place::of(planes);
        // What a level is worth in each direction, next to the scale of a row: those in halves, and others. Dropped
        // ones, and those of the other kind, are worth nothing.
        let mut worths = [[[0.0; LANES]; MAX_HEAD_DIM / LANES]; 2];
        let mut first = 0;
        for (plane, count) in counts.into_iter().enumerate() {
            worths[plane / 2].as_flattened_mut()[first..first + count].fill(RANGES[plane] / 127.0);
            first += count;
        }
        let mut rounded = [[0; MAX_HEAD_DIM]; H];
        let (mut units, mut heads) = ([[0.0; MOST]; 2], 1);
        for (h, rounded) in rounded.iter_mut().enumerate() {
            for (units, (worth, greatest)) in units.iter_mut().zip(worths.iter().zip([GREATEST_TWICE, GREATEST_ONCE])) {
                units[h] = round(queries, h, worth, greatest, rounded)?;
                if units[h] != 0.0 {
                    heads = h + 1;
                }
            }
        }
        let mut halves = vec![[0; WORD]; 2 * heads * places[1].vectors.end];
        let mut wholes = vec![[0; WORD]; heads * places[2].vectors.end];
        let mut offsets = [[0; MOST]; 2];
        for (h, rounded) in rounded.iter().enumerate().take(heads) {
            let (in_halves, twos) = rounded[..kept].split_at(counts[0] + counts[1]);
            for (offsets, of) in offsets.iter_mut().zip([in_halves, twos]) {
                offsets[h] = -i32::from(OFFSET) * of.iter().map(|&x| i32::from(x)).sum::<i32>();
            }
            let (eights, fours) = in_halves.split_at(counts[0]);
            for (plane, of) in [(0, eights), (1, fours)] {
                for (code, &x) in of.iter().enumerate() {
                    let (vector, byte) = places[plane].level(plane, at[plane], code);
                    let low = x as i8;
                    let of_vector = 2 * heads * vector;
                    halves[of_vector + h][byte] = ((x - i16::from(low)) >> 8) as u8;
                    halves[of_vector + heads + h][byte] = low as u8;
                }
            }
            for (code, &x) in twos.iter().enumerate() {
                let (vector, byte) = places[2].level(2, at[2], code);
                wholes[heads * vector + h][byte] = x as u8;
            }
        }
        Some(Self { places, heads, halves, wholes, offsets, units })
    }
}

/// Adds to `rounded` the query of head `h` times what a level is `worth`, as multiples of the number that is returned,
/// `greatest` at most; that is zero where the query is next to nothing. `None` if a direction is not finite.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn round<const H: usize>(
    queries: &[HeadLanes<H>],
    h: usize,
    worth: &[[f32; LANES]],
    greatest: f32,
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
    let unit = _mm512_reduce_max_ps(most) / greatest;
    // If it is not normal, all directions are next to nothing.
    if !unit.is_normal() {
        return Some(0.0);
    }
    let by = _mm512_set1_ps(1.0 / unit);
    for ((x, worth), rounded) in queries.iter().zip(worth).zip(rounded.as_chunks_mut::<LANES>().0) {
        let whole = _mm512_cvtepi32_epi16(_mm512_cvtps_epi32(_mm512_mul_ps(direction(x, worth), by)));
        let rounded = rounded.as_mut_ptr().cast();
        // SAFETY: memory is read and written through a reference to an array of the size that the instructions take.
        unsafe { _mm256_storeu_si256(rounded, _mm256_add_epi16(_mm256_loadu_si256(rounded), whole)) };
    }
    Some(unit)
}
