//! Instruction sets of x86-64.

pub(super) mod avx2;
pub(super) mod avx512;
pub(super) mod avx512_vnni;
mod fixed_point;
mod nibbles;
mod prefetch;
mod value_rows;
