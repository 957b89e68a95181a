//! Products of key rows with queries.

use std::arch::x86_64::*;
use std::mem::MaybeUninit;

use super::inner_loop::multiply_and_make;
use super::magnitudes::{BYTES, COMPANDED, MagnitudeReader, NIBBLES, Scalars};
use super::words::{CHANNELS, Words, takes};
use crate::cpu::decode::chunk::{ByKey, CHUNK, HeadLanes, no_products};
use crate::cpu::decode::kernels::KeyRows;
use crate::cpu::decode::prefetch::Prefetch;
use crate::cpu::isa::rows::keys::truncate;
use crate::cpu::isa::vector::LANES;
use crate::cpu::isa::x86_64::avx512::reduce::{
    ROWS, RowSums, first_words, groups_within, sum_pairs, sum_within_quarters,
};
use crate::cpu::isa::x86_64::avx512::vector::Avx512;
use crate::cpu::isa::x86_64::fixed_point::{GREATEST_SUM, GREATEST_WORD};
use crate::format::v1::layout::{Bits, MAX_HEAD_DIM};

/// Bytes beyond the fields of a row that its vectors may reach.
const BEYOND: usize = CHANNELS;

/// Most bytes that the fields of a quantised row take.
const MOST_BYTES: usize = MAX_HEAD_DIM / 4 + 6 + MAX_HEAD_DIM;

/// `H` queries in int16.
pub(in crate::cpu) struct I16Keys<'a, const H: usize> {
    v: Avx512,
    rows: KeyRows<'a>,
    /// 32 channels a vector, those of all heads beside each other.
    queries: Vec<Words>,
    /// What 1 stands for in each query.
    units: [f32; H],
    scalars: &'a mut Scalars,
    sums: &'a mut RowSums,
}

/// Scratch space for the rows of one chunk.
pub(in crate::cpu) struct KeyScratch {
    scalars: MaybeUninit<Scalars>,
    sums: RowSums,
}

impl Default for KeyScratch {
    #[inline(always)]
    fn default() -> Self {
        Self { scalars: MaybeUninit::uninit(), sums: RowSums::uninit() }
    }
}

impl<'a, const H: usize> I16Keys<'a, H> {
    /// For `queries`, in units of c, block by block. `None` if others are to read these rows, or these queries.
    #[target_feature(enable = "avx512dq,avx512vl,avx512vbmi,avx512vbmi2,avx512vnni,bmi2,popcnt")]
    pub(super) fn new(
        v: Avx512,
        rows: KeyRows<'a>,
        queries: &[HeadLanes<H>],
        scratch: &'a mut KeyScratch,
    ) -> Option<Self> {
        let d = rows.layout.head_dim();
        if rows.layout.bits() == Bits::B16 || !takes(d) {
            return None;
        }
        let mut units = [0.0; H];
        let mut words = vec![Words::ZERO; H * d / 32];
        for (h, unit) in units.iter_mut().enumerate() {
            // SAFETY: memory is read and written through references to arrays of the sizes that the instructions
            // take.
            unsafe {
                // Channels that are neighbours meet in a lane.
                let (mut sums, mut most) = (_mm512_setzero_ps(), _mm512_setzero_ps());
                for pair in queries.as_chunks::<2>().0 {
                    let [a, b] = pair.each_ref().map(|x| _mm512_abs_ps(_mm512_loadu_ps(x.0[h].as_ptr())));
                    most = _mm512_max_ps(most, _mm512_max_ps(a, b));
                    sums = _mm512_add_ps(sums, sum_pairs(a, b));
                }
                // Not finite where a channel is not; the greatest channel may hide that.
                if !_mm512_reduce_add_ps(sums).is_finite() {
                    return None;
                }
                *unit = (_mm512_reduce_max_ps(most) / GREATEST_WORD).max(_mm512_reduce_max_ps(sums) / GREATEST_SUM);
                // If it is not normal, all channels are next to nothing.
                if !unit.is_normal() {
                    *unit = 0.0;
                    continue;
                }
                let by = _mm512_set1_ps(1.0 / *unit);
                for (n, x) in queries.iter().enumerate() {
                    let whole = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(x.0[h].as_ptr()), by));
                    let to = &mut words[n / 2 * H + h].0.as_chunks_mut::<LANES>().0[n % 2];
                    _mm256_storeu_si256(to.as_mut_ptr().cast(), _mm512_cvtsepi32_epi16(whole));
                }
            }
        }
        let KeyScratch { scalars, sums } = scratch;
        Some(Self { v, rows, queries: words, units, scalars: scalars.write(Scalars::zeroed()), sums })
    }

    /// Products of the queries with the `count` first of `rows`, or false if a row has numbers that only others can
    /// read.
    #[target_feature(enable = "avx512dq,avx512vl,avx512vbmi,avx512vbmi2,avx512vnni,bmi2,popcnt")]
    pub(super) fn products(&mut self, rows: &[u8], count: usize, prefetch: &Prefetch, products: &mut ByKey<H>) -> bool {
        let stride = self.rows.layout.row_bytes();
        // Sixteen at a time, as long as vectors stay within the rows.
        let mut groups = groups_within(rows, stride, self.reach(), count);
        match self.multiply((rows, stride), groups, Some(prefetch), products) {
            Outcome::Complete => {}
            Outcome::TooManyMarked => groups = 0,
            Outcome::NegativeScalar => return false,
        }
        (groups * ROWS..count)
            .step_by(ROWS)
            .all(|first| self.copied(&rows[first * stride..], ROWS.min(count - first), first / ROWS, products))
    }

    /// Bytes from the beginning of a row on that its vectors may read.
    fn reach(&self) -> usize {
        self.used() + BEYOND
    }

    /// Bytes that the fields of a row take.
    fn used(&self) -> usize {
        self.rows.layout.codes_at() + self.rows.layout.bits().bytes(self.rows.layout.kept())
    }

    /// As `products`, for at most sixteen rows, where vectors would reach beyond the rows, there are fewer than
    /// sixteen, or one has too many channels marked. The products become those of the `group`th sixteen.
    #[cold]
    #[inline(never)]
    #[target_feature(enable = "avx512dq,avx512vl,avx512vbmi,avx512vbmi2,avx512vnni,bmi2,popcnt")]
    fn copied(&mut self, rows: &[u8], count: usize, group: usize, products: &mut ByKey<H>) -> bool {
        let used = self.used();
        let mut copy = [0; ROWS * MOST_BYTES + BEYOND];
        for (copy, row) in copy.chunks_exact_mut(used).zip(rows.chunks(self.rows.layout.row_bytes())).take(count) {
            copy.copy_from_slice(&row[..used]);
            truncate(&mut copy[..self.rows.layout.mask_bytes()], self.rows.layout.kept());
        }
        let mut of_copy = no_products();
        let read = self.multiply((&copy, used), 1, None, &mut of_copy);
        for (products, of_copy) in products.iter_mut().zip(of_copy) {
            products[group] = of_copy[0];
        }
        matches!(read, Outcome::Complete)
    }

    /// Products with the first of `rows`, `stride` bytes apart, `groups` times sixteen of them.
    #[inline]
    #[target_feature(enable = "avx512dq,avx512vl,avx512vbmi,avx512vbmi2,avx512vnni,bmi2,popcnt")]
    fn multiply(
        &mut self,
        (rows, stride): (&[u8], usize),
        groups: usize,
        prefetch: Option<&Prefetch>,
        products: &mut ByKey<H>,
    ) -> Outcome {
        const { assert!(H <= 8) };
        let KeyRows { layout, .. } = self.rows;
        let count = groups * ROWS;
        if count == 0 {
            return Outcome::Complete;
        }
        assert!(count <= CHUNK && rows.len() >= (count - 1) * stride + self.reach());
        let of = Multiplied { v: self.v, keys: self.rows, queries: &self.queries, rows, stride, count, prefetch };
        let (scalars, sums) = (&mut *self.scalars, &mut *self.sums);
        // SAFETY: as the assertion says.
        let read = unsafe {
            match (layout.bits(), layout.codebook()) {
                (Bits::B8, _) => multiply_keys::<BYTES, H>(&of, scalars, sums),
                (_, None) => multiply_keys::<NIBBLES, H>(&of, scalars, sums),
                (_, Some(_)) => multiply_keys::<COMPANDED, H>(&of, scalars, sums),
            }
        };
        for group in 0..groups {
            // SAFETY: `multiply_keys_i16` has set the sums of `count` rows and of all heads.
            unsafe { sums.finish(group, scalars.units(group), &self.units, products) };
        }
        read
    }
}

/// What came of multiplying.
enum Outcome {
    /// All products are set.
    Complete,
    /// A row has more channels marked than kept: it must be read from a copy with those cleared.
    TooManyMarked,
    /// A row has a negative scalar, as no encoder writes: float32 has to read it.
    NegativeScalar,
}

/// What is multiplied: queries with the `count` first of `rows`, `stride` bytes apart.
struct Multiplied<'a> {
    v: Avx512,
    keys: KeyRows<'a>,
    queries: &'a [Words],
    rows: &'a [u8],
    stride: usize,
    count: usize,
    prefetch: Option<&'a Prefetch<'a>>,
}

impl Multiplied<'_> {
    /// Sets the scalars of the `group`th sixteen rows; false if others are to read them.
    ///
    /// # Safety
    /// There are these rows, with 16 bytes from the scalars of each on.
    #[inline]
    #[target_feature(enable = "avx512dq,avx512vl,avx512vbmi,avx512vbmi2,avx512vnni,bmi2,popcnt")]
    unsafe fn set<const CODES: u8>(&self, group: usize, scalars: &mut Scalars) -> bool {
        // SAFETY: by this function's contract.
        let [recovery_least, step, ..] = unsafe {
            first_words(self.rows.as_ptr().add(group * ROWS * self.stride + self.keys.layout.scalars_at()), self.stride)
        };
        scalars.set::<CODES>(group, recovery_least, step, self.keys.recover)
    }
}

/// [`multiply_keys_i16`] for the head size at hand.
///
/// # Safety
/// As [`multiply_keys_i16`] asks for.
#[inline]
#[target_feature(enable = "avx512dq,avx512vl,avx512vbmi,avx512vbmi2,avx512vnni,bmi2,popcnt")]
unsafe fn multiply_keys<const CODES: u8, const H: usize>(
    of: &Multiplied,
    scalars: &mut Scalars,
    sums: &mut RowSums,
) -> Outcome {
    // SAFETY: by this function's contract.
    unsafe {
        match of.keys.layout.head_dim() / CHANNELS {
            1 => multiply_keys_i16::<CODES, 1, H>(of, scalars, sums),
            2 => multiply_keys_i16::<CODES, 2, H>(of, scalars, sums),
            3 => multiply_keys_i16::<CODES, 3, H>(of, scalars, sums),
            _ => multiply_keys_i16::<CODES, 4, H>(of, scalars, sums),
        }
    }
}

/// Sums of the products of `H` queries with rows of `N` times 64 channels.
///
/// # Safety
/// The count is a multiple of sixteen, though not 0, there are not more rows than a chunk has, and from the beginning
/// of each on, its fields and [`BEYOND`] bytes can be read.
#[inline(never)]
#[target_feature(enable = "avx512dq,avx512vl,avx512vbmi,avx512vbmi2,avx512vnni,bmi2,popcnt")]
unsafe fn multiply_keys_i16<const CODES: u8, const N: usize, const H: usize>(
    of: &Multiplied,
    scalars: &mut Scalars,
    sums: &mut RowSums,
) -> Outcome {
    let &Multiplied { keys: KeyRows { layout, .. }, queries, rows, stride, count, prefetch, .. } = of;
    assert_eq!(queries.len(), 2 * N * H);
    let reader = MagnitudeReader::<CODES, N>::new(layout);
    // SAFETY: by this function's contract, and there are 2 * N * H vectors of queries.
    unsafe {
        let mut none_negative = of.set::<CODES>(0, scalars);
        let mut magnitudes = [[_mm512_setzero_si512(); 2]; N];
        let mut most = 0;
        // The magnitudes of a row are made while those of the one before are multiplied; before the first there are
        // zeros.
        for row in 0..=count {
            // Not earlier: rows far ahead have not been prefetched yet.
            if row % ROWS == 0 && row + ROWS < count {
                none_negative &= of.set::<CODES>(row / ROWS + 1, scalars);
            }
            if let Some(prefetch) = prefetch {
                prefetch.at_key(of.v, row);
            }
            let made = row.min(count - 1);
            let (parts, marked) = reader.read(rows.as_ptr().add(made * stride), scalars, made);
            most = most.max(marked);
            let mut lanes = [[_mm512_setzero_si512(); 4]; 2];
            for (n, (magnitudes, making)) in magnitudes.iter_mut().zip(&parts).enumerate() {
                *magnitudes = multiply_and_make::<H>(*magnitudes, queries.as_ptr().add(2 * H * n), &mut lanes, making);
            }
            // What the zeros give is in the first row's place until it has been multiplied.
            for (four, lanes) in lanes.into_iter().enumerate().take(H.div_ceil(4)) {
                let [a, b, c, d] = lanes;
                let lanes =
                    [_mm512_cvtepi32_ps(a), _mm512_cvtepi32_ps(b), _mm512_cvtepi32_ps(c), _mm512_cvtepi32_ps(d)];
                sums.set(four, row.saturating_sub(1), sum_within_quarters(&lanes));
            }
        }
        match none_negative {
            false => Outcome::NegativeScalar,
            true if most > layout.kept() => Outcome::TooManyMarked,
            true => Outcome::Complete,
        }
    }
}
