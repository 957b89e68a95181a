//! Quantised rows in whole numbers, for a few queries: codes, queries and weights are int16, and their products are added
//! up in int32, twice as many at once as float32 multiply-adds. Needs AVX-512 with VBMI, VBMI2 and VNNI.
//!
//! A key channel becomes a whole multiple of a 32,000th of the greatest magnitude of its row, 125 of which are a step of
//! 8-bit codes and 2,000 one of 4-bit codes; a query channel one of about a 10,000th of the query's greatest; a weight of
//! a value one of a 32,767th of the greatest among its chunk of keys. What that loses is a hundredth of what the rows have
//! lost already.

mod keys;
mod sizes;
mod step;
mod values;
mod weights;

pub(super) use keys::{KeyScratch, Keys};
pub(super) use values::add_rows;
pub(super) use weights::Scaled;

use std::arch::asm;
use std::arch::x86_64::*;

use crate::format::{Bits, ValueLayout};

/// Channels of one vector of bytes; head sizes are to be multiples of it.
const CHANNELS: usize = 64;

/// A vector of int16.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Words([i16; 32]);

const NO_WORDS: Words = Words([0; 32]);

/// Whether [`add_rows`] reads rows of `layout`.
pub(super) fn takes_values(layout: &ValueLayout) -> bool {
    layout.bits() != Bits::B16 && takes(layout.head_dim())
}

/// Whether rows of `head_dim` channels can be read so.
fn takes(head_dim: usize) -> bool {
    head_dim.is_multiple_of(CHANNELS)
}

/// `sum` plus, in each lane of int32, the products of two pairs of int16.
#[inline]
#[target_feature(enable = "avx512f,avx512vnni")]
fn dot(mut sum: __m512i, a: __m512i, b: __m512i) -> __m512i {
    // The intrinsic becomes two instructions where the compiler is not told that the processor has a fast one.
    // SAFETY: the instruction touches but these registers; the function needs AVX-512 VNNI.
    unsafe {
        asm!(
            "vpdpwssd {}, {}, {}", inout(zmm_reg) sum, in(zmm_reg) a, in(zmm_reg) b,
            options(pure, nomem, nostack, preserves_flags),
        )
    };
    sum
}
