//! Products of float16 key rows with queries, in float32, with the registers of AVX-512. Needs VBMI2 too.

use std::arch::x86_64::*;
use std::mem::MaybeUninit;

use super::reduce::{ROWS, RowSums, first_words, groups_within, sum_within_quarters};
use super::vector::{Avx512, expand_all_words, finite_f16};
use crate::cpu::decode::chunk::{ByKey, CHUNK, HeadLanes};
use crate::cpu::decode::kernels::{KeyKernel, KeyRows};
use crate::cpu::decode::prefetch::Prefetch;
use crate::cpu::isa::vector::LANES;
use crate::format::v1::layout::{Bits, KeyLayout};

/// Channels of one vector of float16.
const CHANNELS: usize = 32;

/// Bytes beyond the fields of a row that its vectors may reach.
const BEYOND: usize = 2 * CHANNELS;

/// Scratch space for one chunk.
pub(in crate::cpu) struct Scratch {
    /// a of each row.
    recovery: MaybeUninit<[f32; CHUNK]>,
    sums: RowSums,
}

impl Default for Scratch {
    #[inline(always)]
    fn default() -> Self {
        Self { recovery: MaybeUninit::uninit(), sums: RowSums::uninit() }
    }
}

/// `H` queries for rows of float16.
pub(in crate::cpu) struct F16Keys<'a, const H: usize> {
    isa: Avx512,
    rows: KeyRows<'a>,
    /// Block by block.
    queries: &'a [HeadLanes<H>],
    /// c, block by block.
    scale: &'a [[f32; LANES]],
    scratch: &'a mut Scratch,
}

impl<'a, const H: usize> KeyKernel<'a, H> for F16Keys<'a, H> {
    type Isa = Avx512;
    type Scratch = Scratch;

    #[inline(always)]
    fn new(
        isa: Avx512,
        rows: KeyRows<'a>,
        queries: &'a [HeadLanes<H>],
        scale: &'a [[f32; LANES]],
        scratch: &'a mut Scratch,
    ) -> Option<Self> {
        let takes = rows.layout.bits() == Bits::B16 && rows.layout.head_dim().is_multiple_of(2 * CHANNELS);
        takes.then_some(Self { isa, rows, queries, scale, scratch })
    }

    #[inline(always)]
    fn products(&mut self, rows: &[u8], count: usize, prefetch: &Prefetch, products: &mut ByKey<H>) -> usize {
        // SAFETY: `isa` proves that the processor has the instructions.
        unsafe { self.multiply(rows, count, prefetch, products) }
    }
}

impl<const H: usize> F16Keys<'_, H> {
    /// Products of the queries with the first of the `count` rows, sixteen at a time as long as vectors stay within
    /// `rows`. Returns how many were read: 0 if a row has more channels marked than kept, infinity or NaN.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi2,f16c,bmi2,popcnt,fma,avx2")]
    fn multiply(&mut self, rows: &[u8], count: usize, prefetch: &Prefetch, products: &mut ByKey<H>) -> usize {
        let KeyRows { layout, recover } = self.rows;
        let (stride, reach) = (layout.row_bytes(), layout.codes_at() + 2 * layout.kept() + BEYOND);
        let count = groups_within(rows, stride, reach, count) * ROWS;
        if count == 0 {
            return 0;
        }
        assert!(count <= CHUNK && rows.len() >= (count - 1) * stride + reach);
        let of = Multiplied {
            isa: self.isa,
            layout,
            recover,
            queries: self.queries,
            scale: self.scale,
            rows,
            count,
            prefetch,
        };
        let Scratch { recovery, sums } = &mut *self.scratch;
        let recovery = recovery.write([0.0; CHUNK]);
        // SAFETY: as the assertion says.
        let most = unsafe {
            match layout.head_dim() {
                64 => multiply_keys_f16::<2, H>(&of, recovery, sums),
                128 => multiply_keys_f16::<4, H>(&of, recovery, sums),
                192 => multiply_keys_f16::<6, H>(&of, recovery, sums),
                _ => multiply_keys_f16::<8, H>(&of, recovery, sums),
            }
        };
        let mut zeros = _mm512_setzero_ps();
        for group in 0..count / ROWS {
            for (four, products) in products.chunks_mut(4).enumerate() {
                // SAFETY: `multiply_keys_f16` has set those of `count` rows and of all heads.
                let by_head = unsafe { sums.by_head(four, group) };
                for (of_head, products) in by_head.into_iter().zip(products) {
                    // Infinity and NaN make NaN.
                    zeros = _mm512_fmadd_ps(of_head, _mm512_setzero_ps(), zeros);
                    // SAFETY: memory is written through a reference to an array of the size that the instruction takes.
                    unsafe { _mm512_storeu_ps(products[group].as_mut_ptr(), of_head) };
                }
            }
        }
        let finite = _mm512_cmp_ps_mask::<_CMP_EQ_OQ>(zeros, _mm512_setzero_ps()) == 0xffff;
        if finite && most <= layout.kept() { count } else { 0 }
    }
}

/// What is multiplied: queries with the `count` first of `rows`, whose pruned channels read as zero unless `recover`.
struct Multiplied<'a, const H: usize> {
    isa: Avx512,
    layout: &'a KeyLayout,
    recover: bool,
    queries: &'a [HeadLanes<H>],
    scale: &'a [[f32; LANES]],
    rows: &'a [u8],
    count: usize,
    prefetch: &'a Prefetch<'a>,
}

impl<const H: usize> Multiplied<'_, H> {
    /// a of the `group`th sixteen rows.
    ///
    /// # Safety
    /// These rows exist, and 16 bytes from the scalars of each on can be read.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi2,f16c,bmi2,popcnt,fma,avx2")]
    unsafe fn recovery(&self, group: usize) -> [f32; ROWS] {
        let mut recovery = [0.0; ROWS];
        if self.recover {
            let stride = self.layout.row_bytes();
            // SAFETY: by this function's contract; memory is written through a reference to an array of the size that
            // the instruction takes.
            unsafe {
                let first = self.rows.as_ptr().add(group * ROWS * stride + self.layout.scalars_at());
                let [words, ..] = first_words(first, stride);
                _mm512_storeu_ps(recovery.as_mut_ptr(), finite_f16(_mm512_cvtepi32_epi16(words)));
            }
        }
        recovery
    }
}

/// Sums of the products of `H` queries with rows of `N` times 32 channels, and the most channels that a row has marked.
///
/// # Safety
/// The count is a multiple of sixteen, though not 0, there are not more rows than a chunk has, and from the beginning
/// of each on, its fields and [`BEYOND`] bytes can be read.
#[expect(clippy::needless_range_loop, reason = "several arrays have the same index")]
#[inline(never)]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi2,f16c,bmi2,popcnt,fma,avx2")]
unsafe fn multiply_keys_f16<const N: usize, const H: usize>(
    of: &Multiplied<H>,
    recovery: &mut [f32; CHUNK],
    sums: &mut RowSums,
) -> usize {
    let &Multiplied { layout, queries, scale, rows, count, prefetch, .. } = of;
    let recovery = recovery.as_chunks_mut::<ROWS>().0;
    let queries: &[[HeadLanes<H>; 2]; N] = queries.as_chunks().0.first_chunk().expect("N times 32 channels");
    let scale: &[[[f32; LANES]; 2]; N] = scale.as_chunks().0.first_chunk().expect("N times 32 channels");
    let (stride, kept, codes_at) = (layout.row_bytes(), layout.kept(), layout.codes_at());
    let mut most = 0;
    // SAFETY: the first sixteen rows exist, and more of each can be read.
    recovery[0] = unsafe { of.recovery(0) };
    for pair in 0..count / 2 {
        let (group, first) = (2 * pair / ROWS, 2 * pair % ROWS);
        // Not earlier: rows far ahead have not been prefetched yet.
        if first == 0 && (group + 1) * ROWS < count {
            // SAFETY: sixteen more rows exist.
            recovery[group + 1] = unsafe { of.recovery(group + 1) };
        }
        prefetch.at_key(of.isa, 2 * pair);
        let mut lanes = [[_mm512_setzero_ps(); H]; 2];
        let mut used = [0; 2];
        // Two rows at a time: more sums are independent of each other, and queries are read half as often.
        for part in 0..N {
            let mut keys = [[_mm512_setzero_ps(); 2]; 2];
            for n in 0..2 {
                // SAFETY: the row exists. Its mask and its sign plane are N words each, and from any of the kept
                // codes on, BEYOND bytes can be read.
                let (mask, sign, codes) = unsafe {
                    let row = rows.as_ptr().add((2 * pair + n) * stride);
                    let word = |at: usize| row.add(at).cast::<u32>().read_unaligned();
                    let codes = row.add(codes_at + 2 * Ord::min(used[n], kept));
                    (word(4 * part), word(4 * (N + part)), _mm512_loadu_si512(codes.cast()))
                };
                used[n] += mask.count_ones() as usize;
                let codes = expand_all_words(mask, codes);
                let a = _mm512_set1_ps(recovery[group][first + n]);
                let codes = [_mm512_castsi512_si256(codes), _mm512_extracti64x4_epi64::<1>(codes)];
                for half in 0..2 {
                    let (mask, sign) = ((mask >> (16 * half)) as u16, (sign >> (16 * half)) as u16);
                    // SAFETY: memory is read through a reference to an array of the size that the instruction takes.
                    let pruned = _mm512_mul_ps(a, unsafe { _mm512_loadu_ps(scale[part][half].as_ptr()) });
                    let pruned = _mm512_mask_xor_ps(pruned, sign, pruned, _mm512_set1_ps(-0.0));
                    keys[n][half] = _mm512_mask_cvtph_ps(pruned, mask, codes[half]);
                }
            }
            for half in 0..2 {
                for h in 0..H {
                    // SAFETY: as before.
                    let query = unsafe { _mm512_load_ps(queries[part][half].0[h].as_ptr()) };
                    for n in 0..2 {
                        lanes[n][h] = _mm512_fmadd_ps(keys[n][half], query, lanes[n][h]);
                    }
                }
            }
        }
        for n in 0..2 {
            for (four, lanes) in lanes[n].chunks(4).enumerate() {
                sums.set(four, 2 * pair + n, sum_within_quarters(lanes));
            }
            most = Ord::max(most, used[n]);
        }
    }
    most
}
