//! Processors for which nothing is written in whole numbers.

use super::few::CHUNK;
use super::values::Sums;
use crate::cpu::vector::LANES;
use crate::format::{KeyLayout, ValueLayout};

/// There are none.
pub(super) struct Keys<'a, const H: usize>(&'a KeyLayout, std::convert::Infallible);

impl<'a, const H: usize> Keys<'a, H> {
    pub(super) fn new(_: &'a KeyLayout, _: bool, _: [&[f32]; H]) -> Option<Self> {
        None
    }

    pub(super) unsafe fn products(&self, _: &[u8], _: usize, _: &mut [[[f32; LANES]; CHUNK / LANES]; H]) -> bool {
        match self.1 {}
    }
}

pub(super) fn takes_values(_: &ValueLayout) -> bool {
    false
}

pub(super) unsafe fn add_rows<const H: usize>(
    _: &ValueLayout,
    _: &[u8],
    _: usize,
    _: &[[[f32; LANES]; CHUNK / LANES]; H],
    _: &mut [Sums<H>],
) {
    unreachable!("takes none");
}
