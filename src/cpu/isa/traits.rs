//! What an instruction set offers the drivers: vectors, and its own kernels for rows that they read faster than vectors
//! do.

use super::vector::Vector;
use crate::cpu::decode::kernels::{KeyKernel, ValueKernel};
use crate::format::KeyLayout;

/// An instruction set that kernels are written for. A value of the type is a token: [`Isa::try_new`] alone makes one,
/// on processors that have the instructions.
///
/// # Safety
/// `try_new` returns a value only where the processor has every instruction that the methods, the vectors and the
/// kernels of the set use; nothing else makes one.
pub(in crate::cpu) unsafe trait Isa: Copy + Send + Sync + 'static {
    /// Vectors of the set.
    type Vector: Vector;
    /// Scratch space of `Keys`, on the driver's stack. Its default is to be wholly uninitialised: what has a value is
    /// copied whenever it moves, and that takes as long as reading many rows.
    type KeyScratch: Default;
    /// Products of `H` queries with key rows; `NoKernel` where vectors are all there is.
    type Keys<'a, const H: usize>: KeyKernel<'a, H, Isa = Self, Scratch = Self::KeyScratch>;
    /// Weighted sums of value rows for `H` queries, likewise.
    type Values<const H: usize>: ValueKernel<H, Isa = Self>;

    /// The set, if this processor has it.
    fn try_new() -> Option<Self>;

    /// Vectors of the set.
    fn vector(self) -> Self::Vector;

    /// Queries of one KV head up to which key rows are read as they are; with more, tiles of float32 cost less.
    fn most_decode_queries(_rows: &KeyLayout) -> usize {
        24
    }

    /// Does `work`, compiled for the instruction set as far as it is `inline(always)`.
    fn run<W: Work>(self, work: W) -> W::Output;
}

/// Something to do with an instruction set.
pub(in crate::cpu) trait Work {
    /// What comes of it.
    type Output;

    /// Does it. To be `inline(always)` where it is given to [`Isa::run`].
    fn with<I: Isa>(self, isa: I) -> Self::Output;
}
