//! Processors for which nothing is written in whole numbers.

use std::marker::PhantomData;

use super::ahead::Ahead;
use super::few::ByKey;
use super::values::Sums;
use crate::cpu::vector::LANES;
use crate::format::{KeyLayout, ValueLayout};

/// There are none.
pub(super) struct Keys<'a, const H: usize>(PhantomData<&'a KeyLayout>, std::convert::Infallible);

/// Nothing is written down.
pub(super) struct KeyScratch;

impl KeyScratch {
    pub(super) const NONE: Self = Self;
}

/// Nothing is written down.
pub(super) struct Scaled<const H: usize>;

impl<const H: usize> Scaled<H> {
    pub(super) const NONE: Self = Self;
}

impl<'a, const H: usize> Keys<'a, H> {
    pub(super) unsafe fn new(_: &'a KeyLayout, _: bool, _: &[Sums<H>], _: &'a mut KeyScratch) -> Option<Self> {
        None
    }

    pub(super) unsafe fn products(&mut self, _: &[u8], _: usize, _: &Ahead, _: &mut ByKey<H>) -> bool {
        match self.1 {}
    }
}

pub(super) fn takes_values(_: &ValueLayout) -> bool {
    false
}

pub(super) unsafe fn add_rows<const H: usize>(
    _: &ValueLayout,
    _: (&[u8], usize),
    _: &Ahead,
    _: &ByKey<H>,
    _: &mut Scaled<H>,
    _: &mut [Sums<H>],
) {
    unreachable!("takes none");
}
