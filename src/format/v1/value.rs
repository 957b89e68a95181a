//! Value rows.

use super::layout::{Bits, MAX_HEAD_DIM, ValueLayout};
use super::packed::{range, read_code, read_f16, write_codes, write_f16};
use crate::element::finite;
use crate::format::v2::rotation::{rotate, rotate_back};

impl ValueLayout {
    /// Encodes `value` (`D` channels) into `row`.
    ///
    /// # Panics
    /// If `value` or `row` has another length than the layout says.
    #[inline(always)]
    pub fn encode(&self, value: &[f32], row: &mut [u8]) {
        assert_eq!((value.len(), row.len()), (self.head_dim(), self.row_bytes()));
        row.fill(0);
        let mut channels = [0.0; MAX_HEAD_DIM];
        let channels = &mut channels[..value.len()];
        channels.iter_mut().zip(value).for_each(|(to, &v)| *to = finite(v));
        self.rotate(channels);
        let (pairs, codes) = row.split_at_mut(self.codes_at());
        for (g, limited) in channels.chunks(self.group()).enumerate() {
            let (mut least, mut step) = (0.0, 0.0);
            if let Some(greatest) = self.bits().greatest_code() {
                let (lo, hi) = range(limited);
                step = write_f16(pairs, 4 * g, (hi - lo) / greatest);
                least = write_f16(pairs, 4 * g + 2, lo);
            }
            let at = self.bits().bytes(g * self.group());
            write_codes(&mut codes[at..], self.bits(), limited, least, step);
        }
    }

    /// Decodes `row` into `value` (`D` channels), finite whatever the bytes.
    ///
    /// # Panics
    /// If `value` or `row` has another length than the layout says.
    pub fn decode(&self, row: &[u8], value: &mut [f32]) {
        assert_eq!((value.len(), row.len()), (self.head_dim(), self.row_bytes()));
        let (pairs, codes) = row.split_at(self.codes_at());
        for (g, group) in value.chunks_mut(self.group()).enumerate() {
            let (least, step) = if self.bits() == Bits::B16 {
                (0.0, 1.0)
            } else {
                (read_f16(pairs, 4 * g + 2), read_f16(pairs, 4 * g))
            };
            for (i, v) in group.iter_mut().enumerate() {
                *v = least + step * read_code(codes, self.bits(), g * self.group() + i);
            }
        }
        self.rotate_back(value);
    }

    /// Rotates `value`, `D` channels, if rows store it rotated.
    #[inline(always)]
    pub fn rotate(&self, value: &mut [f32]) {
        if self.is_rotated() {
            rotate(value);
        }
    }

    /// Takes back what [`ValueLayout::rotate`] does.
    #[inline(always)]
    pub fn rotate_back(&self, value: &mut [f32]) {
        if self.is_rotated() {
            rotate_back(value);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::format::row_format::RowFormat;

    proptest! {
        #[test]
        fn decodes_to_within_half_a_step(
            d in (4usize..=32).prop_map(|n| n * 8),
            bits in prop::sample::select(vec![Bits::B16, Bits::B8, Bits::B4]),
            padding in 0usize..3,
            channels in prop::collection::vec(-100f32..100.0, 256),
        ) {
            let Ok(tight) = ValueLayout::new(d, bits, 0) else { return Ok(()) };
            let layout = ValueLayout::new(d, bits, tight.row_bytes() + 4 * padding).unwrap();
            let mut row = vec![0xAA; layout.row_bytes()];
            layout.encode(&channels[..d], &mut row);
            prop_assert!(row[tight.row_bytes()..].iter().all(|&b| b == 0));
            let mut read = vec![0.0; d];
            layout.decode(&row, &mut read);
            for (g, group) in channels[..d].chunks(layout.group()).enumerate() {
                let least = group.iter().fold(f32::MAX, |a, &v| a.min(v));
                let range = group.iter().fold(f32::MIN, |a, &v| a.max(v)) - least;
                let step = bits.greatest_code().map_or(0.0, |greatest| range / greatest);
                for (i, &v) in group.iter().enumerate() {
                    // float16 holds v, scale and minimum to 2^-11; the scale's error is counted once per code.
                    let tolerance = 0.5 * step + 3.0 * 100.0 / 2048.0 * if bits == Bits::B16 { 0.34 } else { 1.0 };
                    let got = read[g * layout.group() + i];
                    prop_assert!((got - v).abs() <= tolerance, "{v} read as {got}, step {step}");
                }
            }
        }

        #[test]
        fn any_bytes_decode_to_finite_numbers(
            d in (4usize..=32).prop_map(|n| n * 8),
            bits in prop::sample::select(vec![Bits::B16, Bits::B8, Bits::B4]),
            format in prop::sample::select(vec![RowFormat::V1, RowFormat::V2]),
            bytes in prop::collection::vec(any::<u8>(), 512),
        ) {
            let Ok(layout) = ValueLayout::of(format, d, bits, 0) else { return Ok(()) };
            let mut read = vec![f32::NAN; d];
            layout.decode(&bytes[..layout.row_bytes()], &mut read);
            prop_assert!(read.iter().all(|v| v.is_finite()));
        }
    }

    proptest! {
        /// Rotations keep lengths: an error is half a step a channel at most, however it is spread.
        #[test]
        fn rotated_rows_decode_to_within_half_a_step(
            n in 1usize..=8, bits in prop::sample::select(vec![Bits::B8, Bits::B4]),
            channels in prop::collection::vec(-100f32..100.0, 256), large in 0usize..256,
        ) {
            let d = 32 * n;
            let layout = ValueLayout::of(RowFormat::V2, d, bits, 0).unwrap();
            prop_assert_eq!(layout.row_bytes(), 4 + bits.bytes(d));
            let mut value = channels[..d].to_vec();
            value[large % d] *= 20.0;
            let mut row = vec![0xAA; layout.row_bytes()];
            layout.encode(&value, &mut row);
            let mut read = vec![0.0; d];
            layout.decode(&row, &mut read);
            rotate(&mut value);
            let range = value.iter().fold(f32::MIN, |a, &v| a.max(v)) - value.iter().fold(f32::MAX, |a, &v| a.min(v));
            rotate_back(&mut value);
            // float16 holds scale and minimum to 2^-11.
            let step = 0.5 * range / bits.greatest_code().unwrap() + 2.0 * range / 2048.0;
            let error: f32 = value.iter().zip(&read).map(|(v, read)| (v - read).powi(2)).sum();
            prop_assert!(error.sqrt() <= step * (d as f32).sqrt(), "{} instead of {}", error.sqrt(), step);
        }
    }

    #[test]
    fn numbers_that_are_not_numbers_are_stored_finite() {
        for bits in [Bits::B16, Bits::B8, Bits::B4] {
            let layout = ValueLayout::new(32, bits, 0).unwrap();
            let mut value = [0.0; 32];
            value[..3].copy_from_slice(&[f32::NAN, f32::INFINITY, f32::NEG_INFINITY]);
            let mut row = vec![0; layout.row_bytes()];
            layout.encode(&value, &mut row);
            layout.decode(&row, &mut value);
            assert!(value.iter().all(|v| v.is_finite() && v.abs() <= 66000.0), "{value:?}");
            assert!(value[1] > 65000.0 && value[2] < -65000.0);
        }
    }
}
