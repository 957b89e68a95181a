//! Slots of the tail of a shared buffer: a dense key of `D` float16, and nothing else.

use half::f16;

use crate::element::{F16_MAX, finite_f16};

/// The least positive float16.
pub(super) const LEAST: f16 = f16::from_bits(1);

/// Writes `key` (`D` finite channels) to `slot` as the nearest float16, but what is positive as the least positive one
/// at least: the sign is to stay that of the row.
///
/// # Panics
/// If `slot` has another length than `2 * D`.
pub fn write_dense_key(key: &[f32], slot: &mut [u8]) {
    assert_eq!(slot.len(), 2 * key.len());
    for (&x, bytes) in key.iter().zip(slot.as_chunks_mut::<2>().0) {
        let nearest = finite_f16(x);
        let stored = if x > 0.0 && nearest < LEAST { LEAST } else { nearest };
        *bytes = stored.to_le_bytes();
    }
}

/// Eight float16 from their bytes, NaN as 0 and infinity as the end of the range.
#[inline(always)]
pub(super) fn halves(bytes: &[u8; 16]) -> [f32; 8] {
    let mut halves = [0; 8];
    for (half, bytes) in halves.iter_mut().zip(bytes.as_chunks::<2>().0) {
        *half = u32::from(u16::from_le_bytes(*bytes));
    }
    // Shifted into its place the number is too small by the difference of the exponents' biases, which is a factor.
    const FACTOR: f32 = f32::from_bits((127 + 127 - 15) << 23);
    halves.map(|half| {
        let magnitude = half & 0x7fff;
        let size = (f32::from_bits(magnitude << 13) * FACTOR).min(F16_MAX);
        let size = if magnitude > 0x7c00 { 0.0 } else { size };
        f32::from_bits(size.to_bits() | (half & 0x8000) << 16)
    })
}
