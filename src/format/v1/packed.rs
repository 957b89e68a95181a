//! Numbers inside a row: little-endian float16, bytes and nibbles.

use half::f16;
use half::slice::HalfFloatSliceExt;

use super::layout::Bits;
use crate::element::{Element, finite, finite_f16};
use crate::format::v2::codebook::nearest_code;

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

/// The least and the greatest of finite `numbers`; the ends of float32, the wrong way round, of none.
#[inline(always)]
pub(super) fn range(numbers: &[f32]) -> (f32, f32) {
    // Side by side, since one comparison after the other waits for the one before.
    let (mut least, mut greatest) = ([f32::MAX; 16], [f32::MIN; 16]);
    let (whole, rest) = numbers.as_chunks::<16>();
    for numbers in whole {
        for (i, &x) in numbers.iter().enumerate() {
            least[i] = if x < least[i] { x } else { least[i] };
            greatest[i] = if x > greatest[i] { x } else { greatest[i] };
        }
    }
    let numbers = || rest.iter().copied();
    (
        least.into_iter().chain(numbers()).fold(f32::MAX, f32::min),
        greatest.into_iter().chain(numbers()).fold(f32::MIN, f32::max),
    )
}

/// The code of number `i` among `codes`.
pub(super) fn read_code(codes: &[u8], bits: Bits, i: usize) -> f32 {
    match bits {
        Bits::B16 => read_f16(codes, 2 * i),
        Bits::B8 => codes[i].into(),
        Bits::B4 => (codes[i / 2] >> (4 * (i % 2)) & 0xf).into(),
    }
}

/// Writes `numbers` to zeroed `codes`: as float16, or quantised as `rint((x - least) / step)`.
#[inline(always)]
pub(super) fn write_codes(codes: &mut [u8], bits: Bits, numbers: &[f32], least: f32, step: f32) {
    let Some(greatest) = bits.greatest_code() else {
        for (numbers, codes) in numbers.chunks(HALVES).zip(codes.chunks_mut(2 * HALVES)) {
            write_halves(codes, numbers);
        }
        return;
    };
    if step == 0.0 {
        return;
    }
    // Added to a small number, it leaves the nearest integer, of two the even one, in the lowest bits.
    const INTEGER: f32 = 8_388_608.0;
    let code = |x: f32| (((x - least) / step).clamp(0.0, greatest) + INTEGER).to_bits() as u8;
    match bits {
        Bits::B4 => {
            let (pairs, rest) = numbers.as_chunks::<2>();
            for (&[low, high], byte) in pairs.iter().zip(&mut *codes) {
                *byte = code(low) | code(high) << 4;
            }
            for &x in rest {
                codes[pairs.len()] = code(x);
            }
        }
        _ => numbers.iter().zip(codes).for_each(|(&x, byte)| *byte = code(x)),
    }
}

/// Writes `numbers` to zeroed `codes` as nibbles: the codes nearest to `(x - least) / step` of the codebook of format
/// 2.
#[inline(always)]
pub(super) fn write_companded(codes: &mut [u8], numbers: &[f32], least: f32, step: f32) {
    if step == 0.0 {
        return;
    }
    for (pair, byte) in numbers.chunks(2).zip(codes) {
        *byte = 0;
        for (n, &x) in pair.iter().enumerate() {
            *byte |= nearest_code((x - least) / step) << (4 * n);
        }
    }
}

/// Numbers that are turned into float16 at once.
const HALVES: usize = 64;

/// Writes up to [`HALVES`] numbers as the nearest finite float16.
fn write_halves(bytes: &mut [u8], numbers: &[f32]) {
    let mut limited = [0.0; HALVES];
    let mut halves = [f16::ZERO; HALVES];
    let (limited, halves) = (&mut limited[..numbers.len()], &mut halves[..numbers.len()]);
    limited.iter_mut().zip(numbers).for_each(|(to, &x)| *to = finite(x));
    halves.convert_from_f32_slice(limited);
    for (bytes, half) in bytes.chunks_exact_mut(2).zip(halves) {
        bytes.copy_from_slice(&half.to_le_bytes());
    }
}
