//! The fixed rotation of values: a Hadamard transform with random signs spreads a large channel over all of them, so
//! that one scale serves a row (QuaRot, arXiv 2404.00456).

use crate::format::v1::layout::MAX_HEAD_DIM;

/// Channels whose sign is changed first: the first 256 bits of the fraction of pi.
const SIGNS: [u8; MAX_HEAD_DIM / 8] = [
    0x24, 0x3f, 0x6a, 0x88, 0x85, 0xa3, 0x08, 0xd3, 0x13, 0x19, 0x8a, 0x2e, 0x03, 0x70, 0x73, 0x44, 0xa4, 0x09, 0x38,
    0x22, 0x29, 0x9f, 0x31, 0xd0, 0x08, 0x2e, 0xfa, 0x98, 0xec, 0x4e, 0x6c, 0x89,
];

/// Rotates `x`, the channels of a head.
#[inline(always)]
pub(in crate::format) fn rotate(x: &mut [f32]) {
    change_signs(x);
    transform(x);
}

/// Takes back what [`rotate`] does, but for rounding.
#[inline(always)]
pub(crate) fn rotate_back(x: &mut [f32]) {
    transform(x);
    change_signs(x);
}

#[inline(always)]
fn change_signs(x: &mut [f32]) {
    x.iter_mut().zip(&FACTORS).for_each(|(x, factor)| *x *= factor);
}

/// The signs as factors.
static FACTORS: [f32; MAX_HEAD_DIM] = {
    let mut factors = [1.0; MAX_HEAD_DIM];
    let mut j = 0;
    while j < MAX_HEAD_DIM {
        if SIGNS[j / 8] >> (j % 8) & 1 == 1 {
            factors[j] = -1.0;
        }
        j += 1;
    }
    factors
};

/// Transforms the largest block of channels that is a power of two, then of what is left the largest one, and so on.
#[inline(always)]
fn transform(x: &mut [f32]) {
    let mut rest = x;
    while !rest.is_empty() {
        let (block, after) = rest.split_at_mut(1 << rest.len().ilog2());
        hadamard(block);
        rest = after;
    }
}

/// The orthonormal Walsh-Hadamard transform in natural order, its own inverse.
#[inline(always)]
fn hadamard(x: &mut [f32]) {
    let mut half = 1;
    while half < x.len() {
        for pair in x.chunks_exact_mut(2 * half) {
            let (first, second) = pair.split_at_mut(half);
            for (a, b) in first.iter_mut().zip(second) {
                (*a, *b) = (*a + *b, *a - *b);
            }
        }
        half *= 2;
    }
    let factor = 1.0 / (x.len() as f32).sqrt();
    x.iter_mut().for_each(|x| *x *= factor);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::bits::bit;

    proptest! {
        #[test]
        fn rotates_as_the_page_says_and_back(n in 4usize..=32, channels in prop::collection::vec(-50f32..50.0, 256)) {
            let x = &channels[..8 * n];
            let mut rotated = x.to_vec();
            rotate(&mut rotated);
            let mut first = 0;
            while first < x.len() {
                let size = 1usize << (x.len() - first).ilog2();
                for i in 0..size as u32 {
                    // Row i of the matrix: -1 where i and j share an odd number of bits.
                    let sum: f64 = (0..size as u32).map(|j| {
                        let negative = ((i & j).count_ones() % 2 == 1) != bit(&SIGNS, first + j as usize);
                        f64::from(x[first + j as usize]) * if negative { -1.0 } else { 1.0 }
                    }).sum();
                    let expected = sum / (size as f64).sqrt();
                    prop_assert!((f64::from(rotated[first + i as usize]) - expected).abs() <= 1e-3, "{} {}", first, i);
                }
                first += size;
            }
            rotate_back(&mut rotated);
            prop_assert!(x.iter().zip(&rotated).all(|(a, b)| (a - b).abs() <= 1e-3));
        }
    }
}
