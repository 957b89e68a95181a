//! Key rows: a scale, and the directions that are kept in planes of codes of 8, 4 and 2 bits.

use half::f16;
use serde::{Deserialize, Serialize};

use super::codes::{LEVELS_2, LEVELS_4, OFFSET, RANGES, code_2, code_4, code_8, level};
use crate::element::{Element, finite_f16};
use crate::format::limits::MAX_HEAD_DIM;
use crate::format::slot::{halves, write_dense_key};

/// Scales that are tried, in units of the root mean square of a row.
const SCALES: [f32; 15] = [0.55, 0.65, 0.75, 0.85, 0.95, 1.05, 1.15, 1.25, 1.35, 1.45, 1.55, 1.65, 1.75, 1.85, 1.95];

/// Kept directions by their bits: the first ones have 8, the next ones 4, the last ones 2. What follows them is
/// dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Planes {
    /// Directions of 8 bits.
    pub eight: usize,
    /// Directions of 4 bits.
    pub four: usize,
    /// Directions of 2 bits.
    pub two: usize,
}

impl Planes {
    /// Bytes before the first plane: the scale.
    pub(crate) const CODES_AT: usize = 2;

    /// Directions of all planes.
    pub fn kept(&self) -> usize {
        self.eight + self.four + self.two
    }

    /// Bytes that the fields of a row take.
    pub fn bytes(&self) -> usize {
        self.twos_at() + self.two.div_ceil(4)
    }

    /// Where the plane of 4 bits begins.
    pub(crate) fn fours_at(&self) -> usize {
        Self::CODES_AT + self.eight
    }

    /// Where the plane of 2 bits begins.
    pub(crate) fn twos_at(&self) -> usize {
        self.fours_at() + self.four.div_ceil(2)
    }

    /// Directions of 8, 4 and 2 bits.
    pub(crate) fn counts(&self) -> [usize; 3] {
        [self.eight, self.four, self.two]
    }

    /// Encodes `key` (`D` finite directions) into `row`, with the scale of the least squared error, weighed by the
    /// squares of `saliency`.
    ///
    /// # Panics
    /// If a slice is shorter than the planes.
    #[inline(always)]
    pub fn encode(&self, key: &[f32], saliency: &[f32], row: &mut [u8]) {
        // As the tail of a shared buffer has the key, so that its codes say whether it is this one.
        let (mut slot, mut rounded) = ([0; 2 * MAX_HEAD_DIM], [0.0; MAX_HEAD_DIM]);
        let slot = &mut slot[..2 * key.len()];
        write_dense_key(key, slot);
        read_slot(slot, &mut rounded);
        let kept = &rounded[..self.kept()];
        let mut weights = [0.0; MAX_HEAD_DIM];
        weights.iter_mut().zip(saliency).for_each(|(w, n)| *w = n * n);
        let size = (sum(kept, |x| x * x) / kept.len() as f32).sqrt();
        let (mut least, mut best) = (f32::INFINITY, finite_f16(size));
        for factor in SCALES {
            let scale = finite_f16(factor * size);
            let error = self.error(kept, &weights, scale.to_f32());
            if error < least {
                (least, best) = (error, scale);
            }
        }
        row.fill(0);
        row[..Self::CODES_AT].copy_from_slice(&best.to_le_bytes());
        self.write(kept, best.to_f32(), &mut row[Self::CODES_AT..]);
    }

    /// Decodes `row` into `key` (`D` directions), finite whatever the bytes.
    ///
    /// # Panics
    /// If a slice is shorter than the planes.
    #[inline(always)]
    pub fn decode(&self, row: &[u8], key: &mut [f32]) {
        let scale = f16::from_le_bytes([row[0], row[1]]).finite();
        let [eight, four, two] = RANGES.map(|range| scale * (range / 127.0));
        let read = |level: u8, unit: f32| (f32::from(level) - f32::from(OFFSET)) * unit;
        let (bytes, nibbles) = (&row[Self::CODES_AT..self.fours_at()], &row[self.fours_at()..self.twos_at()]);
        let (eights, rest) = key.split_at_mut(self.eight);
        let (fours, rest) = rest.split_at_mut(self.four);
        let (twos, rest) = rest.split_at_mut(self.two);
        eights.iter_mut().zip(bytes).for_each(|(x, &code)| *x = read(code, eight));
        for (pair, byte) in fours.chunks_mut(2).zip(nibbles) {
            for (i, x) in pair.iter_mut().enumerate() {
                *x = read(LEVELS_4[usize::from(byte >> (4 * i) & 15)], four);
            }
        }
        for (some, byte) in twos.chunks_mut(4).zip(&row[self.twos_at()..]) {
            for (i, x) in some.iter_mut().enumerate() {
                *x = read(LEVELS_2[usize::from(byte >> (2 * i) & 3)], two);
            }
        }
        rest.fill(0.0);
    }

    /// Reads the dense key in `slot` into `key` (`D` directions), finite whatever the bytes, and says whether it is the
    /// one that `row` was made from: whether it has the row's codes. Where the scale is 0 only a key without any
    /// magnitude has.
    ///
    /// # Panics
    /// If `slot` has another length than `2 * D`, or `row` is shorter than the planes.
    #[inline(always)]
    pub fn read_dense_key(&self, slot: &[u8], row: &[u8], key: &mut [f32]) -> bool {
        assert_eq!(slot.len(), 2 * key.len());
        read_slot(slot, key);
        let kept = &key[..self.kept()];
        let scale = f16::from_le_bytes([row[0], row[1]]).finite();
        if scale == 0.0 {
            return kept.iter().all(|x| *x == 0.0);
        }
        let mut codes = [0; MAX_HEAD_DIM];
        let codes = &mut codes[..self.bytes() - Self::CODES_AT];
        self.write(kept, scale, codes);
        let mut stored = [0; MAX_HEAD_DIM];
        let stored = &mut stored[..codes.len()];
        stored.copy_from_slice(&row[Self::CODES_AT..self.bytes()]);
        // What is left of the last byte of a plane is no code, and may be anything in a row of a host's.
        if !self.four.is_multiple_of(2) {
            stored[self.twos_at() - Self::CODES_AT - 1] &= 0xf;
        }
        if !self.two.is_multiple_of(4) {
            stored[codes.len() - 1] &= (1 << (2 * (self.two % 4))) - 1;
        }
        codes == stored
    }

    /// The part of `kept` that each plane has.
    #[inline(always)]
    fn split<'a>(&self, kept: &'a [f32]) -> [&'a [f32]; 3] {
        let (eight, rest) = kept.split_at(self.eight);
        let (four, two) = rest.split_at(self.four);
        [eight, four, two]
    }

    /// The squared error of `kept` with `scale`, weighed.
    #[inline(always)]
    fn error(&self, kept: &[f32], weights: &[f32; MAX_HEAD_DIM], scale: f32) -> f32 {
        let mut errors = [0.0; MAX_HEAD_DIM];
        let mut first = 0;
        for (plane, part) in self.split(kept).into_iter().enumerate() {
            let (to_codes, unit) = units(plane, scale);
            let out = errors[first..].iter_mut().zip(&weights[first..]);
            for (&x, (error, weight)) in part.iter().zip(out) {
                let off = x - level(plane, x * to_codes) * unit;
                *error = off * off * weight;
            }
            first += part.len();
        }
        sum(&errors[..first], |x| x)
    }

    /// Writes the codes of `kept` with `scale` to zeroed `codes`.
    #[inline(always)]
    fn write(&self, kept: &[f32], scale: f32, codes: &mut [u8]) {
        if scale == 0.0 {
            return;
        }
        let [eight, four, two] = self.split(kept);
        let (bytes, rest) = codes.split_at_mut(self.eight);
        let (nibbles, quarters) = rest.split_at_mut(self.four.div_ceil(2));
        let [to_eight, to_four, to_two] = [0, 1, 2].map(|plane| units(plane, scale).0);
        bytes.iter_mut().zip(eight).for_each(|(byte, x)| *byte = code_8(x * to_eight));
        let mut found = [0; MAX_HEAD_DIM];
        found.iter_mut().zip(four).for_each(|(code, x)| *code = code_4(x * to_four));
        for (byte, pair) in nibbles.iter_mut().zip(found[..four.len().next_multiple_of(2)].as_chunks::<2>().0) {
            *byte = pair[0] | pair[1] << 4;
        }
        let mut found = [0; MAX_HEAD_DIM];
        found.iter_mut().zip(two).for_each(|(code, x)| *code = code_2(x * to_two));
        for (byte, some) in quarters.iter_mut().zip(found[..two.len().next_multiple_of(4)].as_chunks::<4>().0) {
            *byte = some[0] | some[1] << 2 | some[2] << 4 | some[3] << 6;
        }
    }
}

/// What a number of the plane number `plane` is multiplied by for 127ths, and what these are, with `scale`. Both are 0
/// where that is.
#[inline(always)]
fn units(plane: usize, scale: f32) -> (f32, f32) {
    let unit = scale * (RANGES[plane] / 127.0);
    (if scale == 0.0 { 0.0 } else { 1.0 / unit }, unit)
}

/// Reads the float16 of a slot.
#[inline(always)]
fn read_slot(slot: &[u8], key: &mut [f32]) {
    for (halves_of, key) in slot.as_chunks::<16>().0.iter().zip(key.as_chunks_mut::<8>().0) {
        *key = halves(halves_of);
    }
}

/// The sum of `of` each number: in a fixed order, whatever the instruction set, sixteen side by side.
#[inline(always)]
fn sum(numbers: &[f32], of: impl Fn(f32) -> f32) -> f32 {
    let mut sums = [0.0; 16];
    let (whole, rest) = numbers.as_chunks::<16>();
    for numbers in whole {
        for i in 0..16 {
            sums[i] += of(numbers[i]);
        }
    }
    rest.iter().zip(&mut sums).for_each(|(&x, sum)| *sum += of(x));
    sums.into_iter().sum()
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Planes that keep a share of `d` directions, one at least: a share of these with 8 bits, and one of the rest with
    /// 4.
    pub(crate) fn shared_out(d: usize, kept: f64, eight: f64, four: f64) -> Planes {
        let share = |of: usize, share: f64| (of as f64 * share) as usize;
        let kept = share(d, kept).max(1);
        let eight = share(kept, eight);
        let four = share(kept - eight, four);
        Planes { eight, four, two: kept - eight - four }
    }

    /// Directions of a head, planes, a key and saliency.
    fn case() -> impl Strategy<Value = (usize, Planes, Vec<f32>, Vec<f32>)> {
        (4usize..=32, 0.0f64..=1.0, 0.0f64..=1.0, 0.0f64..=1.0).prop_flat_map(|(n, kept, eight, four)| {
            let d = 8 * n;
            let planes = shared_out(d, kept, eight, four);
            let key = prop::collection::vec(-30f32..30.0, d);
            (Just(d), Just(planes), key, prop::collection::vec(0.1f32..10.0, d))
        })
    }

    proptest! {
        #[test]
        fn the_error_of_a_row_is_that_of_its_codes((d, planes, key, saliency) in case(), padding in 0usize..8) {
            let mut row = vec![0xAA; planes.bytes() + padding];
            planes.encode(&key, &saliency, &mut row);
            prop_assert!(row[planes.bytes()..].iter().all(|&b| b == 0));
            let mut read = vec![f32::NAN; d];
            planes.decode(&row, &mut read);
            prop_assert!(read[planes.kept()..].iter().all(|&x| x == 0.0));
            let scale = f16::from_le_bytes([row[0], row[1]]).to_f32();
            let first = [0, planes.eight, planes.eight + planes.four, planes.kept()];
            // Half the widest gap between levels, in 127ths.
            for (plane, gap) in [0.5, 15.5, 44.5].into_iter().enumerate() {
                for j in first[plane]..first[plane + 1] {
                    let range = scale * RANGES[plane];
                    let expected = key[j].clamp(-range, range);
                    let tolerance = range / 127.0 * (gap + 0.01) + key[j].abs() / 2048.0;
                    prop_assert!((read[j] - expected).abs() <= tolerance, "{}: {} read as {}", j, key[j], read[j]);
                }
            }
        }

        #[test]
        fn no_other_scale_is_better((d, planes, key, saliency) in case()) {
            let error = |row: &[u8]| -> f64 {
                let mut read = vec![0.0; d];
                planes.decode(row, &mut read);
                let off = |j: usize| f64::from(saliency[j]) * f64::from(f16::from_f32(key[j]).to_f32() - read[j]);
                (0..planes.kept()).map(|j| off(j).powi(2)).sum()
            };
            let mut row = vec![0; planes.bytes()];
            planes.encode(&key, &saliency, &mut row);
            let mut rounded = vec![0.0; d];
            let mut slot = vec![0; 2 * d];
            write_dense_key(&key, &mut slot);
            read_slot(&slot, &mut rounded);
            let kept = &rounded[..planes.kept()];
            let size = (sum(kept, |x| x * x) / kept.len() as f32).sqrt();
            for factor in SCALES {
                let scale = finite_f16(factor * size);
                let mut other = scale.to_le_bytes().to_vec();
                other.resize(planes.bytes(), 0);
                planes.write(kept, scale.to_f32(), &mut other[2..]);
                prop_assert!(error(&row) <= error(&other) * 1.0001 + 1e-6);
            }
        }

        #[test]
        fn any_bytes_decode_to_finite_numbers(
            (d, planes, _, _) in case(), bytes in prop::collection::vec(any::<u8>(), 300),
        ) {
            let mut read = vec![f32::NAN; d];
            planes.decode(&bytes[..planes.bytes()], &mut read);
            prop_assert!(read.iter().all(|x| x.is_finite()));
        }

        #[test]
        fn a_slot_is_recognised_and_another_is_not(
            (d, planes, key, saliency) in case(), at in any::<prop::sample::Index>(),
        ) {
            let mut row = vec![0; planes.bytes()];
            planes.encode(&key, &saliency, &mut row);
            let mut slot = vec![0; 2 * d];
            write_dense_key(&key, &mut slot);
            let mut read = vec![f32::NAN; d];
            prop_assert!(planes.read_dense_key(&slot, &row, &mut read));
            prop_assert!(key.iter().zip(&read).all(|(a, b)| (a - b).abs() <= a.abs() / 2048.0 + 6e-8));
            // What follows the codes of a plane says nothing.
            if !planes.four.is_multiple_of(2) {
                row[planes.twos_at() - 1] |= 0xf0;
            }
            if !planes.two.is_multiple_of(4) {
                row[planes.bytes() - 1] |= 0xc0;
            }
            prop_assert!(planes.read_dense_key(&slot, &row, &mut read));
            // A kept direction of another sign, and beyond all others.
            let j = at.index(planes.kept());
            let turned = f16::from_f32(if key[j] > 0.0 { -900.0 } else { 900.0 });
            slot[2 * j..2 * j + 2].copy_from_slice(&turned.to_le_bytes());
            prop_assert!(!planes.read_dense_key(&slot, &row, &mut read));
        }
    }

    /// One row spelt out, so that the bytes cannot change unnoticed.
    #[test]
    fn bytes_of_a_row() {
        let mut key = [0.0; 32];
        key[..8].copy_from_slice(&[2.0, -1.0, 1.0, -0.5, 0.25, 3.0, -3.0, 0.1]);
        let planes = Planes { eight: 1, four: 2, two: 5 };
        let mut row = [0; 8];
        planes.encode(&key, &[1.0; 32], &mut row);
        assert_eq!(planes.bytes(), 2 + 1 + 1 + 2);
        // s = 1.831; level 31; codes 5 and 10; 1, 2, 3, 0 and 2.
        assert_eq!(row, [0x53, 0x3f, 0x9f, 0xa5, 0x39, 0x02, 0, 0]);
        let mut zero = [0xff; 8];
        planes.encode(&[0.0; 32], &[1.0; 32], &mut zero);
        assert_eq!(zero, [0; 8]);
    }
}
