//! Products of quantised key rows with queries, in int16.

use std::arch::x86_64::*;
use std::mem::MaybeUninit;

use super::dot::{Dot, Madd, Words, add_products};
use super::expand::places;
use super::magnitudes::{BYTES, MagnitudeReader, Magnitudes, NIBBLES, Scalars};
use super::reduce::{ROWS, by_head, sum_within_halves};
use super::vector::Avx2;
use crate::cpu::decode::chunk::{ByKey, CHUNK, HeadLanes};
use crate::cpu::decode::kernels::KeyRows;
use crate::cpu::decode::prefetch::Prefetch;
use crate::cpu::isa::rows::keys::truncate;
use crate::cpu::isa::vector::{LANES, Vector};
use crate::cpu::isa::x86_64::fixed_point::{GREATEST_SUM, GREATEST_WORD};
use crate::format::v1::layout::{Bits, MAX_HEAD_DIM};

/// `H` queries in int16.
pub(in crate::cpu) struct I16Keys<'a, const H: usize> {
    v: Avx2,
    rows: KeyRows<'a>,
    /// Block by block.
    queries: Vec<[Words; H]>,
    /// What 1 stands for in each query.
    units: [f32; H],
    /// Half the sum of each query's channels, in its units: what magnitudes are more than their words.
    halves: [f32; H],
    magnitudes: &'a mut [Magnitudes; ROWS],
}

/// The magnitudes of eight rows.
pub(in crate::cpu) struct Scratch(MaybeUninit<[Magnitudes; ROWS]>);

impl Default for Scratch {
    #[inline(always)]
    fn default() -> Self {
        Self(MaybeUninit::uninit())
    }
}

impl<'a, const H: usize> I16Keys<'a, H> {
    /// For `queries`, in units of c, block by block. `None` if others are to read these rows, or these queries.
    #[target_feature(enable = "avx2,fma,f16c,bmi2,popcnt")]
    pub(in crate::cpu::isa::x86_64) fn of(
        v: Avx2,
        rows: KeyRows<'a>,
        queries: &[HeadLanes<H>],
        scratch: &'a mut Scratch,
    ) -> Option<Self> {
        if rows.layout.bits() == Bits::B16 {
            return None;
        }
        let (mut units, mut halves) = ([0.0; H], [0.0; H]);
        let mut words = vec![[Words::ZERO; H]; queries.len()];
        for h in 0..H {
            let sign = _mm256_set1_ps(-0.0);
            // Channels that are neighbours meet in a lane of products.
            let (mut sums, mut most) = (_mm256_setzero_ps(), _mm256_setzero_ps());
            for x in queries {
                let [a, b] = v.load(&x.0[h]).map(|x| _mm256_andnot_ps(sign, x));
                most = _mm256_max_ps(most, _mm256_max_ps(a, b));
                sums = _mm256_add_ps(sums, _mm256_hadd_ps(a, b));
            }
            // Not finite where a channel is not; the greatest channel may hide that.
            let zero = _mm256_setzero_ps();
            if !v.all_finite(&[[sums, zero]]) {
                return None;
            }
            let unit = (v.greatest([most, zero]) / GREATEST_WORD).max(v.greatest([sums, zero]) / GREATEST_SUM);
            // If it is not normal, all channels are next to nothing.
            if !unit.is_normal() {
                continue;
            }
            units[h] = unit;
            let by = _mm256_set1_ps(1.0 / unit);
            for (x, words) in queries.iter().zip(&mut words) {
                let [a, b] = v.load(&x.0[h]).map(|x| _mm256_cvtps_epi32(_mm256_mul_ps(x, by)));
                let packed = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packs_epi32(a, b));
                // SAFETY: memory is written through a reference to an array of the size that the instruction takes.
                unsafe { _mm256_store_si256(words[h].0.as_mut_ptr().cast(), packed) };
                halves[h] += words[h].0.iter().map(|&x| f32::from(x)).sum::<f32>() / 2.0;
            }
        }
        let Scratch(magnitudes) = scratch;
        let magnitudes = magnitudes.write([const { Magnitudes::zeroed() }; ROWS]);
        Some(Self { v, rows, queries: words, units, halves, magnitudes })
    }

    /// Products of the queries with the first of the `count` rows. Returns how many were read: fewer where a row has
    /// numbers that only others can read.
    #[target_feature(enable = "avx2,fma,f16c,bmi2,popcnt")]
    pub(in crate::cpu::isa::x86_64) fn multiply(
        &mut self,
        rows: &[u8],
        count: usize,
        prefetch: &Prefetch,
        products: &mut ByKey<H>,
    ) -> usize {
        match (self.rows.layout.bits(), self.v.vnni()) {
            (Bits::B8, None) => self.multiply_coded::<_, BYTES>(Madd, rows, count, prefetch, products),
            (_, None) => self.multiply_coded::<_, NIBBLES>(Madd, rows, count, prefetch, products),
            (Bits::B8, Some(vnni)) => self.multiply_coded::<_, BYTES>(vnni, rows, count, prefetch, products),
            (_, Some(vnni)) => self.multiply_coded::<_, NIBBLES>(vnni, rows, count, prefetch, products),
        }
    }

    #[inline(never)]
    #[target_feature(enable = "avx2,fma,f16c,bmi2,popcnt")]
    fn multiply_coded<D: Dot, const CODES: u8>(
        &mut self,
        dot: D,
        rows: &[u8],
        count: usize,
        prefetch: &Prefetch,
        products: &mut ByKey<H>,
    ) -> usize {
        const { assert!(H <= 8) };
        let KeyRows { layout, recover } = self.rows;
        let (stride, d) = (layout.row_bytes(), layout.head_dim());
        assert!(count <= CHUNK && rows.len() >= count * stride && self.queries.len() * LANES == d);
        let reader = MagnitudeReader::<CODES>::new(layout);
        let magnitudes = &mut *self.magnitudes;
        for first in (0..count).step_by(ROWS) {
            let some = ROWS.min(count - first);
            // The last row stands for those after it.
            let row = |n: usize| rows.as_ptr().wrapping_add((first + n.min(some - 1)) * stride);
            // SAFETY: the rows are there, and behind the scalars, which take 6 bytes, come codes; rows are padded to a
            // multiple of four bytes.
            let scalars =
                unsafe { Scalars::read(layout, recover, std::array::from_fn(|n| row(n).add(layout.scalars_at()))) };
            let Some(scalars) = scalars else { return first };
            for (n, magnitudes) in magnitudes.iter_mut().enumerate().take(some) {
                let codes = &rows[(first + n) * stride + layout.codes_at()..];
                if codes.len() >= reader.reach() {
                    // SAFETY: so many bytes are there.
                    unsafe { reader.read(codes.as_ptr(), &scalars, n, magnitudes) };
                } else {
                    let mut copy = [0; MAX_HEAD_DIM];
                    copy[..codes.len()].copy_from_slice(codes);
                    // SAFETY: as many bytes are there as there are channels, in whole vectors.
                    unsafe { reader.read(copy.as_ptr(), &scalars, n, magnitudes) };
                }
            }
            prefetch.at_key(self.v, first);
            let mut sums = [[_mm256_setzero_ps(); ROWS]; 2];
            for n in 0..some {
                let (row, recovery) = (row(n), scalars.recovery(n));
                // SAFETY: the row is there; two planes of a bit for each channel begin it.
                let lanes = unsafe {
                    let sign = row.add(layout.mask_bytes());
                    let (queries, planes, magnitudes) = (&self.queries, (row, sign), &magnitudes[n]);
                    match multiply_row(dot, queries, planes, magnitudes, recovery) {
                        (lanes, used) if used <= layout.kept() => lanes,
                        _ => multiply_crowded_row(dot, queries, planes, magnitudes, recovery, layout.kept()),
                    }
                };
                for (four, lanes) in lanes.chunks(4).enumerate() {
                    let mut of = [_mm256_setzero_ps(); 4];
                    of.iter_mut().zip(lanes).for_each(|(of, &lanes)| *of = _mm256_cvtepi32_ps(lanes));
                    sums[four][n] = sum_within_halves(&of[..lanes.len()]);
                }
            }
            for (four, products) in products.chunks_mut(4).enumerate() {
                for (h, (of_head, products)) in by_head(&sums[four]).into_iter().zip(products).enumerate() {
                    let h = 4 * four + h;
                    let unit = _mm256_mul_ps(scalars.units, _mm256_set1_ps(self.units[h]));
                    let product = _mm256_mul_ps(_mm256_add_ps(of_head, _mm256_set1_ps(self.halves[h])), unit);
                    let to = &mut products.as_flattened_mut().as_chunks_mut::<ROWS>().0[first / ROWS];
                    // SAFETY: memory is written through a reference to an array of the size that the instruction takes.
                    unsafe { _mm256_storeu_ps(to.as_mut_ptr(), product) };
                }
            }
        }
        count
    }
}

/// Products of `queries` with the channels of a row, added up in each lane, and how many channels its mask marks. A
/// channel is `recovery` plus, if it is kept, its word of `magnitudes`; where the sign plane has a bit, the complement.
/// That is a unit off the negative, which is why all words stand for half a unit more.
///
/// # Safety
/// The row's two planes, of the mask and of the signs, have 16 bits for each block of `queries`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c,bmi2,popcnt")]
unsafe fn multiply_row<D: Dot, const H: usize>(
    dot: D,
    queries: &[[Words; H]],
    (mask, sign): (*const u8, *const u8),
    magnitudes: &Magnitudes,
    recovery: __m256i,
) -> ([__m256i; H], usize) {
    let bits = _mm256_setr_epi16(1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, -32768);
    // Two sums for each query where an instruction waits long for the one before it, and registers are enough.
    let second = usize::from(D::VNNI && H <= 4);
    let mut lanes = [[_mm256_setzero_si256(); H]; 2];
    let first = magnitudes.as_ptr();
    let mut from = first;
    let mut add_block = |n: usize, queries: &[Words; H], lanes: &mut [__m256i; H]| {
        // SAFETY: by this function's contract. There are at most as many bits as channels, and that many magnitudes
        // with eight more behind them.
        unsafe {
            let [low, high] = [*mask.add(2 * n), *mask.add(2 * n + 1)];
            let places = _mm256_set_m128i(places(high), places(low));
            let second = from.add(u32::from(low).count_ones() as usize);
            let words = _mm256_loadu2_m128i(second.cast(), from.cast());
            from = second.add(u32::from(high).count_ones() as usize);
            let magnitude = _mm256_add_epi16(_mm256_shuffle_epi8(words, places), recovery);
            let signs = _mm256_set1_epi16(sign.add(2 * n).cast::<i16>().read_unaligned());
            let negative = _mm256_cmpeq_epi16(_mm256_and_si256(signs, bits), bits);
            let channels = _mm256_xor_si256(magnitude, negative);
            add_products(dot, lanes, channels, queries);
        }
    };
    let (pairs, rest) = queries.as_chunks::<2>();
    for (n, [a, b]) in pairs.iter().enumerate() {
        add_block(2 * n, a, &mut lanes[0]);
        add_block(2 * n + 1, b, &mut lanes[second]);
    }
    if let [last] = rest {
        add_block(2 * pairs.len(), last, &mut lanes[0]);
    }
    let [mut lanes, others] = lanes;
    if second == 1 {
        lanes.iter_mut().zip(others).for_each(|(lanes, other)| *lanes = _mm256_add_epi32(*lanes, other));
    }
    // SAFETY: both lie within the magnitudes.
    let used = unsafe { from.offset_from_unsigned(first) };
    (lanes, used)
}

/// As [`multiply_row`], of a row with more channels marked than `kept`: those after them read as pruned.
///
/// # Safety
/// As [`multiply_row`] asks for.
#[cold]
#[inline(never)]
#[target_feature(enable = "avx2,fma,f16c,bmi2,popcnt")]
unsafe fn multiply_crowded_row<D: Dot, const H: usize>(
    dot: D,
    queries: &[[Words; H]],
    (mask, sign): (*const u8, *const u8),
    magnitudes: &Magnitudes,
    recovery: __m256i,
    kept: usize,
) -> [__m256i; H] {
    let mut copy = [0; MAX_HEAD_DIM / 8];
    let copy = &mut copy[..queries.len() * LANES / 8];
    // SAFETY: by this function's contract.
    unsafe {
        mask.copy_to_nonoverlapping(copy.as_mut_ptr(), copy.len());
        truncate(copy, kept);
        multiply_row(dot, queries, (copy.as_ptr(), sign), magnitudes, recovery).0
    }
}
