//! Vectors of int16, and their products added up in int32: by `vpmaddwd` and `vpaddd`, or by `vpdpwssd` of AVX-VNNI
//! alone. Both give the same, to the bit: sums wrap.

use std::arch::asm;
use std::arch::x86_64::*;

use crate::cpu::isa::vector::LANES;

/// Sixteen channels in int16.
#[derive(Clone, Copy)]
#[repr(C, align(32))]
pub(super) struct Words(pub(super) [i16; LANES]);

impl Words {
    pub(super) const ZERO: Self = Self([0; LANES]);

    #[inline]
    #[target_feature(enable = "avx2")]
    pub(super) fn load(&self) -> __m256i {
        // SAFETY: memory is read through a reference to an array of the size and alignment that the instruction takes.
        unsafe { _mm256_load_si256(self.0.as_ptr().cast()) }
    }
}

/// Proves that the processor has the instructions that add products up in one way.
///
/// # Safety
/// Where `VNNI`, a value exists only if the processor has AVX-VNNI.
pub(super) unsafe trait Dot: Copy {
    /// Whether one instruction multiplies and adds. It takes five cycles after the one before that adds to the same
    /// sums, where an addition alone takes one: more sums are needed for as many to be at work.
    const VNNI: bool;
}

/// Two instructions of AVX2.
#[derive(Clone, Copy)]
pub(super) struct Madd;

// SAFETY: it is not `VNNI`.
unsafe impl Dot for Madd {
    const VNNI: bool = false;
}

/// One instruction of AVX-VNNI.
#[derive(Clone, Copy)]
pub(super) struct Vnni(());

// SAFETY: `detect` alone makes one, or in tests, what does what the processor lacks.
unsafe impl Dot for Vnni {
    const VNNI: bool = true;
}

impl Vnni {
    /// If this processor has the instruction.
    pub(super) fn detect() -> Option<Self> {
        is_x86_feature_detected!("avxvnni").then_some(Self(()))
    }

    /// Whether or not this processor has it.
    #[cfg(all(test, target_os = "linux"))]
    pub(super) fn emulated() -> Self {
        super::emulation::install();
        Self(())
    }
}

/// `sum` plus, in each lane of int32, the products of two pairs of int16.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn add_product<D: Dot>(_: D, mut sum: __m256i, a: __m256i, b: __m256i) -> __m256i {
    if !D::VNNI {
        return _mm256_add_epi32(sum, _mm256_madd_epi16(a, b));
    }
    // As assembly: the intrinsic would need the feature in every function around.
    // SAFETY: the instruction touches only these registers; a `D` proves that the processor has it.
    unsafe {
        asm!(
            "{{vex}} vpdpwssd {}, {}, {}", inout(ymm_reg) sum, in(ymm_reg) a, in(ymm_reg) b,
            options(pure, nomem, nostack, preserves_flags),
        )
    };
    sum
}

/// Adds the products of `words` with each of `queries` to `sums`.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn add_products<D: Dot, const H: usize>(
    dot: D,
    sums: &mut [__m256i; H],
    words: __m256i,
    queries: &[Words; H],
) {
    if !D::VNNI {
        for (sum, query) in sums.iter_mut().zip(queries) {
            *sum = add_product(dot, *sum, words, query.load());
        }
        return;
    }
    // Read from memory by the instruction itself: a compiler would load them apart.
    macro_rules! multiply {
        ($sums:expr, $queries:expr, $($instruction:literal $name:ident $n:literal),*) => {
            asm!(
                $($instruction,)*
                $($name = inout(ymm_reg) $sums[$n],)*
                words = in(ymm_reg) words,
                queries = in(reg) $queries.as_ptr(),
                options(pure, readonly, nostack, preserves_flags),
            )
        };
    }
    let (sums, sums_left) = sums.as_chunks_mut::<4>();
    let (queries, queries_left) = queries.as_chunks::<4>();
    // SAFETY: the instructions write only these registers and read so many queries; a `D` proves that the processor
    // has them.
    unsafe {
        for (sums, queries) in sums.iter_mut().zip(queries) {
            multiply!(
                sums,
                queries,
                "{{vex}} vpdpwssd {a}, {words}, [{queries}]" a 0,
                "{{vex}} vpdpwssd {b}, {words}, [{queries} + 32]" b 1,
                "{{vex}} vpdpwssd {c}, {words}, [{queries} + 64]" c 2,
                "{{vex}} vpdpwssd {d}, {words}, [{queries} + 96]" d 3
            );
        }
        let (sums, sums_left) = sums_left.as_chunks_mut::<2>();
        let (queries, queries_left) = queries_left.as_chunks::<2>();
        for (sums, queries) in sums.iter_mut().zip(queries) {
            multiply!(
                sums,
                queries,
                "{{vex}} vpdpwssd {a}, {words}, [{queries}]" a 0,
                "{{vex}} vpdpwssd {b}, {words}, [{queries} + 32]" b 1
            );
        }
        if !sums_left.is_empty() {
            multiply!(sums_left, queries_left, "{{vex}} vpdpwssd {a}, {words}, [{queries}]" a 0);
        }
    }
}
