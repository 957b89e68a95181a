//! Key rows.

use super::layout::{Bits, KeyLayout, MAX_HEAD_DIM};
use super::packed::{range, read_code, read_f16, write_codes, write_companded, write_f16};
use crate::bits::bit;

/// One key to be stored, with the channels to keep already chosen.
#[derive(Clone, Copy, Debug)]
pub struct PrunedKey<'a> {
    /// k, `D` finite channels.
    pub key: &'a [f32],
    /// Keep mask of `D` bits, [`KeyLayout::kept`] of them set.
    pub mask: &'a [u8],
    /// Channel scale c, `D` positive numbers.
    pub scale: &'a [f32],
    /// Recovery magnitude a, in units of c.
    pub recovery: f32,
}

/// One stored key, whatever its bytes; see [`KeyLayout::row`].
#[derive(Clone, Copy, Debug)]
pub struct KeyRow<'a> {
    layout: &'a KeyLayout,
    bytes: &'a [u8],
}

impl KeyLayout {
    /// Encodes `pruned` into `row`.
    ///
    /// ```
    /// use spark_ort::format::{Bits, KeyLayout, PrunedKey};
    /// use spark_ort::method::{recovery_magnitude, select};
    ///
    /// let key: Vec<f32> = (0..32).map(|j| (j as f32 - 15.5) / 8.0).collect();
    /// let (saliency, scale) = ([1.0; 32], [1.0; 32]);
    /// let layout = KeyLayout::new(32, 16, Bits::B8, 0)?;
    /// // One bit a channel: half of them are kept, those with the greatest products of saliency and key.
    /// let mut mask = [0; 4];
    /// select(&key, &saliency, layout.kept(), &mut mask);
    /// let recovery = recovery_magnitude(&key, &scale, &mask);
    ///
    /// let mut row = vec![0; layout.row_bytes()];
    /// layout.encode(PrunedKey { key: &key, mask: &mask, scale: &scale, recovery }, &mut row);
    /// let mut decoded = [0.0; 32];
    /// layout.row(&row).decode(&scale, |_| 1.0, &mut decoded);
    ///
    /// assert!((decoded[0] - key[0]).abs() < 0.01, "kept");
    /// assert!((decoded[16] - recovery).abs() < 1e-3, "pruned: its sign, and the mean magnitude of pruned channels");
    /// # Ok::<(), spark_ort::format::LayoutError>(())
    /// ```
    ///
    /// # Panics
    /// If a length is not what the layout says, the mask does not keep that many channels, or rows have planes.
    #[inline(always)]
    pub fn encode(&self, pruned: PrunedKey<'_>, row: &mut [u8]) {
        assert!(self.planes().is_none(), "planes have their own encoder");
        let PrunedKey { key, mask, scale, recovery } = pruned;
        let d = self.head_dim();
        assert_eq!((key.len(), mask.len(), scale.len(), row.len()), (d, self.mask_bytes(), d, self.row_bytes()));
        row.fill(0);
        row[..mask.len()].copy_from_slice(mask);
        let whole = self.bits() == Bits::B16;
        // |k_j| / c_j, or with 16 bits k_j itself; then of the kept channels only.
        let mut sizes = [0.0; MAX_HEAD_DIM];
        match whole {
            true => sizes[..d].copy_from_slice(key),
            false => sizes.iter_mut().zip(key.iter().zip(scale)).for_each(|(s, (k, c))| *s = k.abs() / c),
        }
        let signs = &mut row[mask.len()..2 * mask.len()];
        for ((keys, &mask), signs) in key.as_chunks::<8>().0.iter().zip(mask).zip(signs) {
            let all = (0..8).fold(0, |byte, j| byte | u8::from(keys[j] <= 0.0) << j);
            *signs = if whole { all & !mask } else { all };
        }
        let mut kept = [0.0; MAX_HEAD_DIM + 1];
        let mut count = 0;
        for (sizes, &mask) in sizes.as_chunks::<8>().0.iter().zip(mask) {
            for (j, &size) in sizes.iter().enumerate() {
                // Written always, and overwritten by the next one where it is not kept.
                kept[count] = size;
                count += usize::from(mask >> j & 1);
            }
        }
        assert_eq!(count, self.kept(), "channels in the mask");
        let kept = &kept[..count];
        let at = self.scalars_at();
        write_f16(row, at, recovery);
        let (mut least, mut step) = (0.0, 0.0);
        if let Some(greatest) = self.greatest_code() {
            let (lo, hi) = range(kept);
            least = write_f16(row, at + 2, lo);
            step = write_f16(row, at + 4, (hi - lo) / greatest);
        }
        let codes = &mut row[self.codes_at()..];
        match self.codebook() {
            Some(_) => write_companded(codes, kept, least, step),
            None => write_codes(codes, self.bits(), kept, least, step),
        }
    }

    /// The row in `bytes`.
    ///
    /// # Panics
    /// If `bytes` has another length than [`KeyLayout::row_bytes`], or rows have planes.
    pub fn row<'a>(&'a self, bytes: &'a [u8]) -> KeyRow<'a> {
        assert!(self.planes().is_none(), "planes have their own decoder");
        assert_eq!(bytes.len(), self.row_bytes());
        KeyRow { layout: self, bytes }
    }
}

impl KeyRow<'_> {
    /// The recovery magnitude a, in units of c.
    pub fn recovery(&self) -> f32 {
        read_f16(self.bytes, self.layout.scalars_at())
    }

    /// Whether channel `j` is marked as kept.
    pub fn marked(&self, j: usize) -> bool {
        bit(&self.bytes[..self.layout.mask_bytes()], j)
    }

    /// The key as attention sees it: kept channels as stored, pruned ones as `sign(k_j) * a * factor(j) * c_j`, with a
    /// read from the row. `scale` is c, `factor` finite, `key` receives `D` finite channels.
    ///
    /// # Panics
    /// If `scale` or `key` has another length than `D`.
    pub fn decode(&self, scale: &[f32], factor: impl Fn(usize) -> f32, key: &mut [f32]) {
        let layout = self.layout;
        let d = layout.head_dim();
        assert_eq!((scale.len(), key.len()), (d, d));
        let signs = &self.bytes[layout.mask_bytes()..layout.scalars_at()];
        let codes = &self.bytes[layout.codes_at()..];
        let quantised = layout.bits() != Bits::B16;
        let (least, step) = if quantised {
            (read_f16(self.bytes, layout.scalars_at() + 2), read_f16(self.bytes, layout.scalars_at() + 4))
        } else {
            (0.0, 1.0)
        };
        let a = self.recovery();
        let mut slot = 0;
        for j in 0..d {
            let sign = if bit(signs, j) { -1.0 } else { 1.0 };
            // Bytes of a host may mark more channels than there are slots: those read as pruned.
            key[j] = if self.marked(j) && slot < layout.kept() {
                let code = read_code(codes, layout.bits(), slot);
                let x = least + step * layout.codebook().map_or(code, |book| book[code as usize].into());
                slot += 1;
                if quantised { sign * x * scale[j] } else { x }
            } else {
                sign * (a * factor(j)) * scale[j]
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::bits::set_bit;
    use crate::format::row_format::RowFormat;

    /// A random key with a random mask of `kept` channels.
    fn case() -> impl Strategy<Value = (KeyLayout, Vec<f32>, Vec<u8>, Vec<f32>, f32)> {
        let bits = prop::sample::select(vec![Bits::B16, Bits::B8, Bits::B4]);
        let formats = prop::sample::select(vec![RowFormat::V1, RowFormat::V2]);
        (formats, 4usize..=32, bits, 0usize..3, 0.0f64..1.0)
            .prop_flat_map(|(format, n, bits, padding, share)| {
                let d = n * 8;
                let kept = 1 + (share * d as f64) as usize;
                let tight = KeyLayout::of(format, d, kept.min(d), bits, 0).unwrap();
                let layout = KeyLayout::of(format, d, tight.kept(), bits, tight.row_bytes() + 4 * padding).unwrap();
                let channels = Just((0..d).collect::<Vec<_>>()).prop_shuffle();
                let key = prop::collection::vec(-50f32..50.0, d);
                (Just(layout), key, channels, prop::collection::vec(0.2f32..5.0, d), 0f32..10.0)
            })
            .prop_map(|(layout, key, channels, scale, a)| {
                let mut mask = vec![0; layout.head_dim() / 8];
                channels[..layout.kept()].iter().for_each(|&j| set_bit(&mut mask, j));
                (layout, key, mask, scale, a)
            })
    }

    proptest! {
        #[test]
        fn decodes_to_what_was_stored((layout, key, mask, scale, a) in case()) {
            let mut row = vec![0xAA; layout.row_bytes()];
            layout.encode(PrunedKey { key: &key, mask: &mask, scale: &scale, recovery: a }, &mut row);
            let row = layout.row(&row);
            let mut read = vec![f32::NAN; key.len()];
            row.decode(&scale, |_| 1.0, &mut read);
            let kept = |j: &usize| bit(&mask, *j);
            let magnitudes = (0..key.len()).filter(kept).map(|j| key[j].abs() / scale[j]);
            let range = magnitudes.clone().fold(0f32, f32::max) - magnitudes.fold(f32::MAX, f32::min);
            // Of companded codes the widest.
            let widest = layout.codebook().map_or(1.0, |book| f32::from(book[15] - book[14]));
            let step = layout.greatest_code().map_or(0.0, |greatest| widest * range / greatest);
            for j in 0..key.len() {
                prop_assert_eq!(row.marked(j), kept(&j));
                let expected = if kept(&j) { key[j] } else { (if key[j] <= 0.0 { -1.0 } else { 1.0 }) * a * scale[j] };
                // Half a step, and float16 roundings of m and step, or of the number itself; |k|/c is at most 250 here.
                let tolerance = match layout.bits() {
                    Bits::B16 => expected.abs() / 2047.0,
                    _ => scale[j] * (0.5 * step + 250.0 / 2048.0 + 0.01),
                };
                let difference = (read[j] - expected).abs();
                prop_assert!(difference <= tolerance, "channel {}: {} read as {}", j, expected, read[j]);
            }
        }

        #[test]
        fn any_bytes_decode_to_finite_numbers(
            (layout, _, _, scale, _) in case(), bytes in prop::collection::vec(any::<u8>(), 640),
        ) {
            let mut read = vec![f32::NAN; layout.head_dim()];
            layout.row(&bytes[..layout.row_bytes()]).decode(&scale, |_| 1.0, &mut read);
            prop_assert!(read.iter().all(|x| x.is_finite()));
        }
    }

    /// One row spelt out, so that the bytes cannot change unnoticed.
    #[test]
    fn bytes_of_a_row() {
        let mut key = [0.0; 32];
        (key[1], key[9], key[31]) = (1.0, -2.0, 8.5);
        let mask = [0b10, 0b10, 0, 0x80];
        let scale = [1.0; 32];
        let pruned = PrunedKey { key: &key, mask: &mask, scale: &scale, recovery: 0.5 };

        let layout = KeyLayout::new(32, 3, Bits::B16, 0).unwrap();
        let mut row = vec![0; layout.row_bytes()];
        layout.encode(pruned, &mut row);
        let mut expected = vec![0b10, 0b10, 0, 0x80, 0xfd, 0xfd, 0xff, 0x7f, 0x00, 0x38, 0, 0];
        expected.extend([0x00, 0x3c, 0x00, 0xc0, 0x40, 0x48, 0, 0]);
        assert_eq!(row, expected);

        let layout = KeyLayout::new(32, 3, Bits::B4, 0).unwrap();
        let mut row = vec![0; layout.row_bytes()];
        layout.encode(pruned, &mut row);
        // m = 1, step = 0.5, u = 0, 2, 15; the signs now hold channel 9 too.
        let mut expected = vec![0b10, 0b10, 0, 0x80, 0xfd, 0xff, 0xff, 0x7f, 0x00, 0x38, 0x00, 0x3c, 0x00, 0x38];
        expected.extend([0x20, 0x0f]);
        assert_eq!(row, expected);
    }
}
