//! What drivers and kernels share: queries and sums by blocks of channels, and numbers by key.

use crate::cpu::isa::vector::LANES;

/// Keys whose scores are found before their values are added.
pub(in crate::cpu) const CHUNK: usize = 128;

/// A number for each key of a chunk.
pub(in crate::cpu) type OfHead = [[f32; LANES]; CHUNK / LANES];

/// The same for each of `H` query heads: products, then weights.
pub(in crate::cpu) type ByKey<const H: usize> = [OfHead; H];

/// Products, or weights, that are all zero.
pub(in crate::cpu) const fn no_products<const H: usize>() -> ByKey<H> {
    [[[0.0; LANES]; CHUNK / LANES]; H]
}

/// Sets the products of one key with all query heads.
#[inline(always)]
pub(in crate::cpu) fn set_products<const H: usize>(products: &mut ByKey<H>, key: usize, of: [f32; H]) {
    for (products, x) in products.iter_mut().zip(of) {
        products[key / LANES][key % LANES] = x;
    }
}

/// One block of channels of `H` query heads: queries, or weighted sums of values. Aligned, since a vector that lies
/// across two cache lines takes twice as long to read.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(in crate::cpu) struct HeadLanes<const H: usize>(pub(in crate::cpu) [[f32; LANES]; H]);

impl<const H: usize> HeadLanes<H> {
    pub(in crate::cpu) const ZERO: Self = Self([[0.0; LANES]; H]);
}
