//! Values of 4 bits against their arithmetic, number by number: what is rounded, and what whole numbers then come to.

use half::f16;
use proptest::prelude::*;

use super::{Avx512Vnni, values};
use crate::cpu::decode::chunk::{CHUNK, HeadLanes, no_products};
use crate::cpu::decode::prefetch::Prefetch;
use crate::cpu::isa::traits::Isa;
use crate::cpu::isa::vector::LANES;
use crate::cpu::isa::x86_64::fixed_point::DITHER;
use crate::cpu::isa::x86_64::value_rows::ScaledWeights;
use crate::format::{Bits, RowFormat, ValueLayout};

/// Numbers from 0 to 1.
fn numbers(seed: u64) -> impl FnMut() -> f32 {
    let mut at = seed;
    move || {
        at = at.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (at >> 40) as f32 / (1u64 << 24) as f32
    }
}

fn values_are_their_arithmetic<const H: usize>(isa: Avx512Vnni, layout: &ValueLayout, seed: u64) {
    let mut next = numbers(seed);
    let count = 1 + (next() * (CHUNK - 1) as f32) as usize;
    let mut rows = vec![0; count * layout.row_bytes()];
    for row in rows.chunks_exact_mut(layout.row_bytes()) {
        row.iter_mut().for_each(|byte| *byte = (next() * 256.0) as u8);
        for pair in row[..layout.codes_at()].as_chunks_mut::<4>().0 {
            let [[a, b], [c, d]] = [next(), -8.0 * next()].map(|x| f16::from_f32(x).to_le_bytes());
            *pair = [a, b, c, d];
        }
    }
    let mut weights = no_products::<H>();
    let heads = 1 + (next() * (H - 1) as f32).round() as usize;
    for weights in &mut weights[..heads] {
        // Few that matter, as softmax makes them.
        weights.as_flattened_mut()[..count].iter_mut().for_each(|w| *w = next().powi(8));
    }
    let prefetch = Prefetch::new((&[], 0), (&rows, layout.row_bytes()), false);
    let mut sums = vec![HeadLanes::<H>::ZERO; layout.head_dim() / LANES];
    let mut scratch = ScaledWeights::default();
    // SAFETY: `isa` proves that the processor has the instructions.
    unsafe {
        values::add_rows(isa.vector(), layout, (&rows, count), &prefetch, (&weights, heads), &mut scratch, &mut sums);
    }
    for j in 0..layout.head_dim() {
        let (group, within) = (j / layout.group(), j % 32);
        let fields =
            |row: &[u8]| [0, 2].map(|at| f16::from_le_bytes([row[4 * group + at], row[4 * group + at + 1]]).to_f32());
        for h in 0..heads {
            let weights = weights[h].as_flattened();
            let scaled = |n: usize| weights[n] * fields(&rows[n * layout.row_bytes()..])[0];
            let most = (0..count).map(scaled).fold(0.0, f32::max);
            let unit = most / 254.5;
            let mut want = 0.0;
            for (n, row) in rows.chunks_exact(layout.row_bytes()).enumerate() {
                let [scale, minimum] = fields(row);
                let code = row[layout.codes_at() + j / 2] >> (4 * (j % 2)) & 15;
                let whole = scaled(n).mul_add(1.0 / unit, DITHER[n % LANES]).round_ties_even();
                let centre = f64::from(minimum) + 8.0 * f64::from(scale);
                // The code that stands for zero, from 8.
                let ratio = (centre / f64::from(scale)).clamp(-8.0, 8.0);
                want += f64::from(whole) * (f64::from(code) - 8.0 + ratio) * f64::from(unit);
                want += f64::from(weights[n]) * (centre - f64::from(scale) * ratio);
            }
            let got = f64::from(sums[2 * (j / 32) + within % 2].0[h][within / 2]);
            // One weight may lie half-way between two, where float32 tips it.
            let tolerance = f64::from(8.0 * unit) + 1e-5 * f64::from(weights.iter().sum::<f32>()) * 16.0;
            assert!((got - want).abs() <= tolerance, "channel {j} of head {h}: {got} instead of {want}");
        }
    }
}

proptest! {
    #[test]
    fn values_of_4_bits_are_less_8_times_bytes(
        seed: u64, format in prop::sample::select(vec![RowFormat::V1, RowFormat::V2]), parts in 1usize..=4,
    ) {
        let Some(isa) = Avx512Vnni::try_new() else { return Ok(()) };
        let layout = ValueLayout::of(format, 64 * parts, Bits::B4, 0).unwrap();
        values_are_their_arithmetic::<1>(isa, &layout, seed);
        values_are_their_arithmetic::<2>(isa, &layout, seed);
        values_are_their_arithmetic::<4>(isa, &layout, seed);
        values_are_their_arithmetic::<8>(isa, &layout, seed);
    }
}
