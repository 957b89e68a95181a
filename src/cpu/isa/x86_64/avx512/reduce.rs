//! Sums and maxima over lanes of many vectors at once, and words of many rows as vectors.

use std::arch::asm;
use std::arch::x86_64::*;
use std::mem::MaybeUninit;

use crate::cpu::decode::chunk::{ByKey, CHUNK};

/// Rows whose numbers share vectors, a lane each.
pub(in crate::cpu::isa::x86_64) const ROWS: usize = 16;

/// How many times [`ROWS`] of the `count` first of `rows`, `stride` bytes apart, can be read so far that `reach` bytes
/// from the beginning of each on are within `rows`.
pub(in crate::cpu::isa::x86_64) fn groups_within(rows: &[u8], stride: usize, reach: usize, count: usize) -> usize {
    let within = if rows.len() < reach { 0 } else { (rows.len() - reach) / stride + 1 };
    count.min(within) / ROWS
}

/// The sums of neighbours among the lanes of `a`, then of `b`.
#[inline]
#[target_feature(enable = "avx512f")]
pub(in crate::cpu::isa::x86_64) fn sum_pairs(a: __m512, b: __m512) -> __m512 {
    let even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    let odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
    _mm512_add_ps(_mm512_permutex2var_ps(a, even, b), _mm512_permutex2var_ps(a, odd, b))
}

/// In each quarter, the sums of the lanes of that quarter of each of up to four vectors.
#[inline]
#[target_feature(enable = "avx512f")]
pub(in crate::cpu::isa::x86_64) fn sum_within_quarters(x: &[__m512]) -> __m512 {
    let mut four = [_mm512_setzero_ps(); 4];
    four[..x.len()].copy_from_slice(x);
    let [a, b, c, d] = four;
    let ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
    let cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
    _mm512_add_ps(_mm512_shuffle_ps::<0b01_00_01_00>(ab, cd), _mm512_shuffle_ps::<0b11_10_11_10>(ab, cd))
}

/// For every row of a chunk and up to eight heads, the sums of each quarter of lanes, four heads a vector, a head a
/// lane. Left uninitialised: filling it would take as long as reading many rows.
#[repr(C, align(64))]
pub(in crate::cpu::isa::x86_64) struct RowSums([[[MaybeUninit<f32>; 16]; CHUNK]; 2]);

impl RowSums {
    #[inline(always)]
    pub(in crate::cpu::isa::x86_64) const fn uninit() -> Self {
        Self([[[MaybeUninit::uninit(); 16]; CHUNK]; 2])
    }

    /// Sets those of a row and the `four`th four heads.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(in crate::cpu::isa::x86_64) fn set(&mut self, four: usize, row: usize, sums: __m512) {
        // SAFETY: memory is written through a reference to an array of the size and alignment that the instruction
        // takes.
        unsafe { _mm512_store_ps(self.0[four][row].as_mut_ptr().cast(), sums) };
    }

    /// The sums of all lanes of the `four`th four heads, a vector each, and the `group`th sixteen rows, a lane each.
    ///
    /// # Safety
    /// They have been set.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(in crate::cpu::isa::x86_64) unsafe fn by_head(&self, four: usize, group: usize) -> [__m512; 4] {
        let rows: &[[MaybeUninit<f32>; 16]; ROWS] = self.0[four][group * ROWS..].first_chunk().expect("sixteen rows");
        let mut by_row = [_mm512_setzero_ps(); 4];
        for (m, by_row) in by_row.iter_mut().enumerate() {
            // Every fourth row together, so that in the end all are in order.
            let mut quarters = [_mm512_setzero_ps(); 4];
            for (n, quarter) in quarters.iter_mut().enumerate() {
                // SAFETY: by this function's contract; memory is read through a reference to an array of the size that
                // the instruction takes.
                *quarter = unsafe { _mm512_load_ps(rows[4 * n + m].as_ptr().cast()) };
            }
            *by_row = sum_across_quarters(quarters);
        }
        transpose(by_row)
    }

    /// Sets the products of the `group`th sixteen rows: the sums of all lanes, times what 1 stands for in each row and
    /// in the query of each head.
    ///
    /// # Safety
    /// The sums have been set.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(in crate::cpu::isa::x86_64) unsafe fn finish<const H: usize>(
        &self,
        group: usize,
        of_rows: __m512,
        of_heads: &[f32; H],
        products: &mut ByKey<H>,
    ) {
        for (four, products) in products.chunks_mut(4).enumerate() {
            // SAFETY: by this function's contract.
            let by_head = unsafe { self.by_head(four, group) };
            for (h, (of_head, products)) in by_head.into_iter().zip(products).enumerate() {
                let unit = _mm512_mul_ps(of_rows, _mm512_set1_ps(of_heads[4 * four + h]));
                // SAFETY: memory is written through a reference to an array of the size that the instruction takes.
                unsafe { _mm512_storeu_ps(products[group].as_mut_ptr(), _mm512_mul_ps(of_head, unit)) };
            }
        }
    }
}

/// Functions that reduce the lanes of each vector to one number by an instruction: four vectors at once.
macro_rules! reduce {
    ($(#[$doc:meta])* $name:ident, $wide:ident, $half:ident, $quarter:ident) => {
        $(#[$doc])*
        #[inline]
        #[target_feature(enable = "avx512f,avx512dq,avx512vl")]
        pub(in crate::cpu::isa::x86_64) fn $name<const N: usize>(x: [__m512; N]) -> [f32; N] {
            let mut reduced = [0.0; N];
            for (reduced, x) in reduced.chunks_mut(4).zip(x.chunks(4)) {
                let mut four = [_mm512_setzero_ps(); 4];
                four[..x.len()].copy_from_slice(x);
                let [a, b, c, d] = four;
                let ab = $wide(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
                let cd = $wide(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
                let low = _mm512_shuffle_ps::<0b01_00_01_00>(ab, cd);
                let quarters = $wide(low, _mm512_shuffle_ps::<0b11_10_11_10>(ab, cd));
                let halves = $half(_mm512_castps512_ps256(quarters), _mm512_extractf32x8_ps::<1>(quarters));
                let all = $quarter(_mm256_castps256_ps128(halves), _mm256_extractf128_ps::<1>(halves));
                let mut numbers = [0.0; 4];
                // SAFETY: memory is written through a reference to an array of the size that the instruction takes.
                unsafe { _mm_storeu_ps(numbers.as_mut_ptr(), all) };
                reduced.copy_from_slice(&numbers[..reduced.len()]);
            }
            reduced
        }
    };
}

reduce!(
    /// The sum of the lanes of each.
    sum_each,
    _mm512_add_ps,
    _mm256_add_ps,
    _mm_add_ps
);
reduce!(
    /// The greatest lane of each.
    greatest_each,
    _mm512_max_ps,
    _mm256_max_ps,
    _mm_max_ps
);

/// In quarter `n`, the sum of the quarters of `x[n]`.
#[inline]
#[target_feature(enable = "avx512f")]
pub(in crate::cpu::isa::x86_64) fn sum_across_quarters(x: [__m512; 4]) -> __m512 {
    let [a, b, c, d] = x;
    let ab = _mm512_add_ps(_mm512_shuffle_f32x4::<0b01_00_01_00>(a, b), _mm512_shuffle_f32x4::<0b11_10_11_10>(a, b));
    let cd = _mm512_add_ps(_mm512_shuffle_f32x4::<0b01_00_01_00>(c, d), _mm512_shuffle_f32x4::<0b11_10_11_10>(c, d));
    _mm512_add_ps(_mm512_shuffle_f32x4::<0b10_00_10_00>(ab, cd), _mm512_shuffle_f32x4::<0b11_01_11_01>(ab, cd))
}

/// Within each quarter, lane `m` of `x[n]` as lane `n` of the vector `m`.
#[inline]
#[target_feature(enable = "avx512f")]
pub(in crate::cpu::isa::x86_64) fn transpose(x: [__m512; 4]) -> [__m512; 4] {
    let [a, b, c, d] = x;
    let (ab, ab_high) = (_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
    let (cd, cd_high) = (_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
    [
        _mm512_shuffle_ps::<0b01_00_01_00>(ab, cd),
        _mm512_shuffle_ps::<0b11_10_11_10>(ab, cd),
        _mm512_shuffle_ps::<0b01_00_01_00>(ab_high, cd_high),
        _mm512_shuffle_ps::<0b11_10_11_10>(ab_high, cd_high),
    ]
}

/// Quarter `m` of `x[n]` as quarter `n` of the vector `m`.
#[inline]
#[target_feature(enable = "avx512f")]
pub(in crate::cpu::isa::x86_64) fn transpose_quarters(x: [__m512i; 4]) -> [__m512i; 4] {
    let [a, b, c, d] = x;
    let (ab, ab_high) = (_mm512_shuffle_i32x4::<0b01_00_01_00>(a, b), _mm512_shuffle_i32x4::<0b11_10_11_10>(a, b));
    let (cd, cd_high) = (_mm512_shuffle_i32x4::<0b01_00_01_00>(c, d), _mm512_shuffle_i32x4::<0b11_10_11_10>(c, d));
    [
        _mm512_shuffle_i32x4::<0b10_00_10_00>(ab, cd),
        _mm512_shuffle_i32x4::<0b11_01_11_01>(ab, cd),
        _mm512_shuffle_i32x4::<0b10_00_10_00>(ab_high, cd_high),
        _mm512_shuffle_i32x4::<0b11_01_11_01>(ab_high, cd_high),
    ]
}

/// `address`, of which the compiler knows nothing. Otherwise it keeps addresses that are a stride apart each in a
/// register, or where there are not enough, in memory.
#[inline(always)]
fn opaque(mut address: *const u8) -> *const u8 {
    // SAFETY: there is no instruction.
    unsafe { asm!("/* {} */", inout(reg) address, options(pure, readonly, nostack, preserves_flags)) };
    address
}

/// The first four words of sixteen rows, `stride` bytes apart from `first` on: a vector a word, a lane a row.
///
/// # Safety
/// 16 bytes can be read from each row's beginning on.
#[inline]
#[target_feature(enable = "avx512f")]
pub(in crate::cpu::isa::x86_64) unsafe fn first_words(first: *const u8, stride: usize) -> [__m512i; 4] {
    let [a, b, c, d] = [0, 4, 8, 12].map(|row| opaque(first.wrapping_add(row * stride)));
    let mut rows = [_mm512_setzero_ps(); 4];
    for (n, rows) in rows.iter_mut().enumerate() {
        // SAFETY: by this function's contract.
        unsafe {
            let row = |of: *const u8| _mm_loadu_ps(of.add(n * stride).cast());
            let low = _mm512_castps128_ps512(row(a));
            let low = _mm512_insertf32x4::<1>(low, row(b));
            let low = _mm512_insertf32x4::<2>(low, row(c));
            *rows = _mm512_insertf32x4::<3>(low, row(d));
        }
    }
    transpose(rows).map(|x| _mm512_castps_si512(x))
}
