//! Kernels that an instruction set may have for the rows of a chunk. The driver reads the rows that they leave over
//! with vectors.

use std::convert::Infallible;
use std::marker::PhantomData;

use super::chunk::{ByKey, HeadLanes};
use super::prefetch::Prefetch;
use crate::cpu::isa::vector::LANES;
use crate::format::v1::layout::{KeyLayout, ValueLayout};

/// Key rows of a call.
#[derive(Clone, Copy)]
pub(in crate::cpu) struct KeyRows<'a> {
    /// Layout of the rows.
    pub(in crate::cpu) layout: &'a KeyLayout,
    /// Whether pruned channels read as their recovered magnitude; zero otherwise.
    pub(in crate::cpu) recover: bool,
}

impl KeyRows<'_> {
    /// Whether channels are stored in units of the channel scale c.
    pub(in crate::cpu) fn in_units(&self) -> bool {
        self.layout.planes().is_none() && self.layout.bits().is_quantised()
    }
}

/// Products of `H` queries with key rows.
pub(in crate::cpu) trait KeyKernel<'a, const H: usize>: Sized {
    /// The instruction set it is written for.
    type Isa;
    /// Scratch space for one chunk, on the driver's stack.
    type Scratch: Default;

    /// For `queries`, in units of the channel scale c where rows are, and c, block by block. `None` if it reads no rows
    /// of this layout, or not these queries.
    fn new(
        isa: Self::Isa,
        rows: KeyRows<'a>,
        queries: &'a [HeadLanes<H>],
        scale: &'a [[f32; LANES]],
        scratch: &'a mut Self::Scratch,
    ) -> Option<Self>;

    /// Sets the products of the queries with the first of the `count` rows, and returns how many this kernel read.
    /// Those of a whole chunk are all set. In others, those of blocks after the last row come as zero and stay so; in
    /// its block they may be anything behind it.
    fn products(&mut self, rows: &[u8], count: usize, prefetch: &Prefetch, products: &mut ByKey<H>) -> usize;
}

/// Weighted sums of value rows for `H` queries.
pub(in crate::cpu) trait ValueKernel<const H: usize>: Sized {
    /// The instruction set it is written for.
    type Isa;
    /// Scratch space for the weights of a chunk, on the driver's stack.
    type Scratch: Default;

    /// `None` if it reads no rows of `layout`.
    fn new(isa: Self::Isa, layout: &ValueLayout) -> Option<Self>;

    /// Adds the values of `rows` of `layout`, and how many they are, times their `weights` to `sums`, one entry a block
    /// of channels, in the order of `isa::rows::values::add_rows`. With the weights comes how many of the queries are
    /// there, one at least; nobody looks at the sums of the others.
    fn add_rows(
        &self,
        layout: &ValueLayout,
        rows: (&[u8], usize),
        prefetch: &Prefetch,
        weights: (&ByKey<H>, usize),
        scratch: &mut Self::Scratch,
        sums: &mut [HeadLanes<H>],
    );
}

/// The kernels of an instruction set that has none of its own: it reads no rows.
pub(in crate::cpu) struct NoKernel<I>(Infallible, PhantomData<I>);

impl<'a, I, const H: usize> KeyKernel<'a, H> for NoKernel<I> {
    type Isa = I;
    type Scratch = ();

    #[inline(always)]
    fn new(_: I, _: KeyRows<'a>, _: &'a [HeadLanes<H>], _: &'a [[f32; LANES]], (): &'a mut ()) -> Option<Self> {
        None
    }

    fn products(&mut self, _: &[u8], _: usize, _: &Prefetch, _: &mut ByKey<H>) -> usize {
        match self.0 {}
    }
}

impl<I, const H: usize> ValueKernel<H> for NoKernel<I> {
    type Isa = I;
    type Scratch = ();

    #[inline(always)]
    fn new(_: I, _: &ValueLayout) -> Option<Self> {
        None
    }

    fn add_rows(
        &self,
        _: &ValueLayout,
        _: (&[u8], usize),
        _: &Prefetch,
        _: (&ByKey<H>, usize),
        (): &mut (),
        _: &mut [HeadLanes<H>],
    ) {
        match self.0 {}
    }
}
