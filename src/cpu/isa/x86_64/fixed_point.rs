//! Rows in int16 fixed point: what the kernels of every instruction set round alike.

use crate::cpu::isa::vector::LANES;

/// The greatest magnitude of a key row, in its own units.
pub(super) const GREATEST_MAGNITUDE: f32 = 32_000.0;

/// Most that the magnitudes of the query channels may come to whose products are added up in one lane: with
/// [`GREATEST_MAGNITUDE`] each, and what rounding adds, they stay within int32.
pub(super) const GREATEST_SUM: f32 = 65_000.0;

/// The greatest magnitude of a query channel, and of a value's weight, in its own units.
pub(super) const GREATEST_WORD: f32 = 32_767.0;

/// Below this many units, a weight would lose too much where all round alike.
pub(super) const SMALL: f32 = 16.0;

/// Ordered dither: added to small weights before they are rounded, so that many of them together keep what they weigh:
/// sixteenths from -1/2 to 1/2, neighbours far apart.
pub(super) const DITHER: [f32; LANES] = {
    let mut dither = [0.0; LANES];
    let mut n = 0;
    while n < LANES {
        dither[n] = ((n as u8).reverse_bits() >> 4) as f32 / 16.0 - 15.0 / 32.0;
        n += 1;
    }
    dither
};
