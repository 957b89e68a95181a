//! Processors for which nothing is written with the registers of AVX-512.

use std::marker::PhantomData;

use super::ahead::Ahead;
use super::few::ByKey;
use super::values::Sums;
use crate::cpu::vector::LANES;
use crate::format::KeyLayout;

/// Nothing is written down.
pub(super) struct Scratch;

impl Scratch {
    pub(super) const NONE: Self = Self;
}

/// There are none.
pub(super) struct Halves<'a, const H: usize>(PhantomData<&'a KeyLayout>, std::convert::Infallible);

impl<'a, const H: usize> Halves<'a, H> {
    pub(super) fn new(
        _: &'a KeyLayout,
        _: bool,
        _: (&'a [Sums<H>], &'a [[f32; LANES]]),
        _: &'a mut Scratch,
    ) -> Option<Self> {
        None
    }

    pub(super) unsafe fn products(&mut self, _: &[u8], _: usize, _: &Ahead, _: &mut ByKey<H>) -> usize {
        match self.1 {}
    }
}
