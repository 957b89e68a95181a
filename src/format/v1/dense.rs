//! Which key the slot of a tail holds, of formats 1 and 2.

use super::layout::{Bits, KeyLayout};
use crate::bits::bit;
use crate::format::slot::{LEAST, halves};

impl KeyLayout {
    /// Reads the dense key in `slot` into `key` (`D` channels), finite whatever the bytes, and says whether it is the
    /// one that `row` was made from, as far as the row tells: its signs are the row's, and with 16 bits the kept
    /// channels are. Other keys, and other bytes, pass with a probability of 2^-D or so.
    ///
    /// # Panics
    /// If a length is not what the layout says.
    pub fn read_dense_key(&self, slot: &[u8], row: &[u8], key: &mut [f32]) -> bool {
        let d = self.head_dim();
        assert_eq!((slot.len(), row.len(), key.len()), (2 * d, self.row_bytes(), d));
        let (mask, rest) = row.split_at(self.mask_bytes());
        let whole = self.bits() == Bits::B16;
        let mut differ = [0; 8];
        let bytes = mask.iter().zip(&rest[..mask.len()]);
        for ((slot, (&mask, &signs)), key) in slot.as_chunks::<16>().0.iter().zip(bytes).zip(key.as_chunks_mut::<8>().0)
        {
            *key = halves(slot);
            let told = u32::from(if whole { !mask } else { 0xff });
            for j in 0..8 {
                // All bits, or none: of equal width as the numbers.
                let negative = if key[j] <= 0.0 { u32::MAX } else { 0 };
                let expected = if u32::from(signs) & 1 << j != 0 { u32::MAX } else { 0 };
                differ[j] |= (negative ^ expected) & if told & 1 << j != 0 { u32::MAX } else { 0 };
            }
        }
        differ == [0; 8] && (!whole || self.has_kept_channels(slot, row))
    }

    /// Whether the kept channels of `row`, of 16 bits, are those of the dense key in `slot`.
    pub(crate) fn has_kept_channels(&self, slot: &[u8], row: &[u8]) -> bool {
        let codes = row[self.codes_at()..].as_chunks::<2>().0;
        let mut kept = codes[..self.kept()].iter();
        for (j, &dense) in slot.as_chunks::<2>().0.iter().enumerate() {
            // Channels that are marked beyond the kept ones read as pruned.
            if bit(&row[..self.mask_bytes()], j)
                && let Some(&stored) = kept.next()
            {
                // Where the row has zero, a dense key may have the least positive number.
                if dense != stored && !(stored == [0, 0] && dense == LEAST.to_le_bytes()) {
                    return false;
                }
            }
        }
        true
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use half::f16;

    use super::*;
    use crate::element::Element;
    use crate::format::{PrunedKey, write_dense_key};
    use crate::method::select;

    /// A key, its row and its slot.
    pub(crate) fn stored(layout: &KeyLayout, key: &[f32]) -> (Vec<u8>, Vec<u8>) {
        let (mut mask, scale) = (vec![0; key.len() / 8], vec![1.0; key.len()]);
        select(key, &scale, layout.kept(), &mut mask);
        let (mut row, mut slot) = (vec![0; layout.row_bytes()], vec![0; 2 * key.len()]);
        layout.encode(PrunedKey { key, mask: &mask, scale: &scale, recovery: 0.5 }, &mut row);
        write_dense_key(key, &mut slot);
        (row, slot)
    }

    /// Numbers of all sizes, zeros and what float16 rounds to zero among them.
    pub(crate) fn channel() -> impl Strategy<Value = f32> {
        prop_oneof![-50f32..50.0, -1e-7f32..1e-7, Just(0.0), Just(-0.0), Just(1e-30), Just(-1e-30), Just(65504.0)]
    }

    /// Channels of a key at most. Miri takes minutes to draw as many as there may be.
    const CHANNELS: usize = if cfg!(miri) { 32 } else { 256 };

    proptest! {
        #[test]
        fn a_key_is_that_of_its_row_and_of_no_other(
            (d, kept) in (4..=CHANNELS / 8).prop_flat_map(|n| (Just(8 * n), 1..=8 * n)),
            bits in prop::sample::select(vec![Bits::B16, Bits::B8, Bits::B4]),
            keys in prop::collection::vec(prop::collection::vec(channel(), CHANNELS), 2),
        ) {
            let layout = KeyLayout::new(d, kept, bits, 0).unwrap();
            let [(row, slot), (other_row, other)] = [0, 1].map(|i| stored(&layout, &keys[i][..d]));
            let mut read = vec![f32::NAN; d];
            prop_assert!(layout.read_dense_key(&other, &other_row, &mut read));
            let same_signs = (0..d).all(|j| (keys[0][j] <= 0.0) == (keys[1][j] <= 0.0));
            prop_assert!(!layout.read_dense_key(&other, &row, &mut read) || same_signs);
            prop_assert!(layout.read_dense_key(&slot, &row, &mut read));
            for (read, key) in read.into_iter().zip(&keys[0][..d]) {
                prop_assert!((read - key).abs() <= key.abs() / 2048.0 + 6e-8, "{} read as {}", key, read);
            }
        }

        #[test]
        fn one_channel_of_another_sign_is_noticed(
            key in prop::collection::vec(channel(), 64), j in 0usize..64,
            bits in prop::sample::select(vec![Bits::B16, Bits::B8, Bits::B4]),
        ) {
            let layout = KeyLayout::new(64, 20, bits, 0).unwrap();
            let (row, mut slot) = stored(&layout, &key);
            let turned = if key[j] <= 0.0 { 1.0 } else { -1.0 };
            slot[2 * j..2 * j + 2].copy_from_slice(&f16::from_f32(turned).to_le_bytes());
            prop_assert!(!layout.read_dense_key(&slot, &row, &mut [0.0; 64]));
        }

    }

    #[test]
    fn every_float16_reads_as_it_is_or_finite() {
        for bits in 0..=u16::MAX {
            let [got, ..] = halves(&[bits.to_le_bytes(); 8].as_flattened().try_into().unwrap());
            let expected = f16::from_bits(bits).finite();
            assert_eq!(got.to_bits() & 0x7fff_ffff, expected.abs().to_bits(), "{bits:#x}");
            assert!(got == expected);
        }
    }
}
