//! Vectors of int16, their products, and those of bytes.

use std::arch::asm;
use std::arch::x86_64::*;

/// Channels of one vector of bytes; head sizes are to be multiples of it.
pub(super) const CHANNELS: usize = 64;

/// A vector of int16.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct Words(pub(super) [i16; 32]);

impl Words {
    pub(super) const ZERO: Self = Self([0; 32]);
}

/// Whether rows of `head_dim` channels can be read by whole vectors.
pub(super) fn takes(head_dim: usize) -> bool {
    head_dim.is_multiple_of(CHANNELS)
}

/// `sum` plus, in each lane of int32, the products of two pairs of int16.
#[inline]
#[target_feature(enable = "avx512f,avx512vnni")]
pub(super) fn dot(mut sum: __m512i, a: __m512i, b: __m512i) -> __m512i {
    // The intrinsic becomes two instructions where the compiler is not told that the processor has a fast one.
    // SAFETY: the instruction touches only these registers; the function needs AVX-512 VNNI.
    unsafe {
        asm!(
            "vpdpwssd {}, {}, {}", inout(zmm_reg) sum, in(zmm_reg) a, in(zmm_reg) b,
            options(pure, nomem, nostack, preserves_flags),
        )
    };
    sum
}

/// `sum` plus, in each lane of int32, the products of four bytes with four int8.
#[inline]
#[target_feature(enable = "avx512f,avx512vnni")]
pub(super) fn dot_bytes(mut sum: __m512i, bytes: __m512i, signed: __m512i) -> __m512i {
    // As in `dot`.
    // SAFETY: the instruction touches only these registers; the function needs AVX-512 VNNI.
    unsafe {
        asm!(
            "vpdpbusd {}, {}, {}", inout(zmm_reg) sum, in(zmm_reg) bytes, in(zmm_reg) signed,
            options(pure, nomem, nostack, preserves_flags),
        )
    };
    sum
}
