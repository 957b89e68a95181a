//! Numbers inside a row: little-endian float16, bytes and nibbles.

use half::f16;

use super::Bits;
use crate::element::{Element, finite_f16};

/// The float16 at byte `at`, read as a finite number.
pub(super) fn read_f16(row: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([row[at], row[at + 1]]).finite()
}

/// Writes `x` as the nearest finite float16 at byte `at` and returns it as it will be read.
pub(super) fn write_f16(row: &mut [u8], at: usize, x: f32) -> f32 {
    let stored = finite_f16(x);
    row[at..at + 2].copy_from_slice(&stored.to_le_bytes());
    stored.to_f32()
}

/// The code of number `i` among `codes`.
pub(super) fn read_code(codes: &[u8], bits: Bits, i: usize) -> f32 {
    match bits {
        Bits::B16 => read_f16(codes, 2 * i),
        Bits::B8 => codes[i].into(),
        Bits::B4 => (codes[i / 2] >> (4 * (i % 2)) & 0xf).into(),
    }
}

/// Writes number `i` among zeroed `codes`: as float16, or quantised as `rint((x - least) / step)`.
pub(super) fn write_code(codes: &mut [u8], bits: Bits, i: usize, x: f32, least: f32, step: f32) {
    let Some(greatest) = bits.greatest_code() else {
        write_f16(codes, 2 * i, x);
        return;
    };
    let code = match step {
        0.0 => 0,
        _ => ((x - least) / step).round_ties_even().clamp(0.0, greatest) as u8,
    };
    match bits {
        Bits::B4 => codes[i / 2] |= code << (4 * (i % 2)),
        _ => codes[i] = code,
    }
}
