//! Key rows in planes of directions decoded, sixteen at a time.

use super::planes::{PAIRS, reachable};
use super::window::window;
use crate::cpu::isa::vector::{LANES, Vector};
use crate::format::v3::{LEVELS_4, OFFSET, Planes, RANGES};

/// As [`Planes::decode`], the reference: decodes the first of `rows` into `key`, `[D]`.
///
/// # Panics
/// If a slice is shorter than the planes.
#[inline(always)]
pub(in crate::cpu) fn decode<V: Vector>(v: V, planes: &Planes, rows: &[u8], key: &mut [f32]) {
    let mut copy = None;
    let row = reachable(planes, rows, &mut copy);
    let (scale, offset) = (v.eight_f16(window(row, 0))[0], v.splat(-f32::from(OFFSET)));
    let [eight, four, two] = RANGES.map(|range| scale * (range / 127.0));
    let (eight, four, two) = (v.splat(eight), v.splat(four), v.splat(two));
    let mut some = [0.0; LANES];
    // What goes beyond a plane is overwritten by the next one.
    for code in (0..planes.eight).step_by(LANES) {
        v.store(v.mul(v.add(v.load_u8(window(row, Planes::CODES_AT + code)), offset), eight), &mut some);
        put(&some, key, code);
    }
    for code in (0..planes.four).step_by(LANES) {
        let levels = v.expand_by_codebook(&LEVELS_4, window(row, planes.fours_at() + code / 2), false, u16::MAX);
        v.store(v.mul(v.add(levels, offset), four), &mut some);
        put(&some, key, planes.eight + code);
    }
    for code in (0..planes.two).step_by(2 * LANES) {
        let mut both = [[0.0; LANES]; 2];
        for (book, to) in PAIRS.iter().zip(&mut both) {
            let levels = v.expand_by_codebook(book, window(row, planes.twos_at() + code / 4), false, u16::MAX);
            v.store(v.mul(v.add(levels, offset), two), to);
        }
        let [even, odd] = both;
        let in_order: [f32; 2 * LANES] = std::array::from_fn(|i| [even, odd][i % 2][i / 2]);
        put(&in_order, key, planes.eight + planes.four + code);
    }
    key[planes.kept()..].fill(0.0);
}

/// Puts `some` into `key` from number `at` on, as far as they are in it.
#[inline(always)]
fn put<const N: usize>(some: &[f32; N], key: &mut [f32], at: usize) {
    let to = &mut key[at..];
    match to.first_chunk_mut() {
        Some(to) => *to = *some,
        None => to.copy_from_slice(&some[..to.len()]),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::cpu::isa::InstructionSet;
    use crate::cpu::isa::traits::{Isa, Work};
    use crate::format::v3::planes::tests::shared_out;

    /// A row that is decoded to so many directions.
    struct Decode<'a> {
        planes: &'a Planes,
        rows: &'a [u8],
        d: usize,
    }

    impl Work for Decode<'_> {
        type Output = Vec<f32>;

        #[inline(always)]
        fn with<I: Isa>(self, isa: I) -> Vec<f32> {
            let mut key = vec![f32::NAN; self.d];
            decode(isa.vector(), self.planes, self.rows, &mut key);
            key
        }
    }

    proptest! {
        /// Any bytes, of rows that end with their memory and of others.
        #[test]
        fn every_set_agrees_with_the_format(
            (blocks, kept, eight, four) in (2usize..=16, 0.0f64..=1.0, 0.0f64..=1.0, 0.0f64..=1.0),
            bytes in prop::collection::vec(any::<u8>(), 600), longer: bool,
        ) {
            let d = LANES * blocks;
            let planes = &shared_out(d, kept, eight, four);
            let rows = &bytes[..planes.bytes() + if longer { 64 } else { 0 }];
            let mut expected = vec![f32::NAN; d];
            planes.decode(rows, &mut expected);
            for set in InstructionSet::ALL.into_iter().filter(|set| set.is_available()) {
                prop_assert_eq!(set.with(Decode { planes, rows, d }), expected.clone(), "{}", set.name());
            }
        }
    }
}
