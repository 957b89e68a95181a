//! Dense keys in the tail of a shared buffer: `D` float16, and nothing else.

use half::f16;
use half::slice::HalfFloatSliceExt;

use super::packed::read_f16;
use super::{Bits, KeyLayout, MAX_HEAD_DIM};
use crate::bits::bit;
use crate::element::{finite, finite_f16};

/// The least positive float16.
const LEAST: f16 = f16::from_bits(1);

/// Writes `key` (`D` finite channels) to `slot` as the nearest float16, but what is positive as the least positive one at
/// least: the sign is to stay that of the row.
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

/// Reads `slot` into `key` (`D` channels), finite whatever the bytes.
///
/// # Panics
/// If `slot` has another length than `2 * D`.
#[inline(always)]
pub fn read_dense_key(slot: &[u8], key: &mut [f32]) {
    assert_eq!(slot.len(), 2 * key.len());
    let mut halves = [f16::ZERO; MAX_HEAD_DIM];
    let halves = &mut halves[..key.len()];
    for (half, bytes) in halves.iter_mut().zip(slot.as_chunks::<2>().0) {
        *half = f16::from_le_bytes(*bytes);
    }
    halves.convert_to_f32_slice(key);
    key.iter_mut().for_each(|x| *x = finite(*x));
}

impl KeyLayout {
    /// Whether the dense key in `slot` is the one that `row` was made from, as far as the row tells: its signs are the
    /// row's, and with 16 bits the kept channels are. Other keys, and other bytes, pass with a probability of 2^-D or so.
    ///
    /// # Panics
    /// If a length is not what the layout says.
    #[inline(always)]
    pub fn is_dense_key(&self, slot: &[u8], row: &[u8]) -> bool {
        assert_eq!((slot.len(), row.len()), (2 * self.head_dim(), self.row_bytes()));
        let (mask, rest) = row.split_at(self.mask_bytes());
        let signs = &rest[..mask.len()];
        let whole = self.bits() == Bits::B16;
        let mut differ = 0;
        for ((slot, &mask), &signs) in slot.as_chunks::<16>().0.iter().zip(mask).zip(signs) {
            let mut channels = [0; 8];
            for (channel, bytes) in channels.iter_mut().zip(slot.as_chunks::<2>().0) {
                *channel = i16::from_le_bytes(*bytes);
            }
            // A float16 is not positive where its bits, as an integer, are not.
            let all = (0..8).fold(0, |byte, j| byte | u8::from(channels[j] <= 0) << j);
            differ |= (all ^ signs) & if whole { !mask } else { 0xff };
        }
        differ == 0 && (!whole || self.has_kept_channels(slot, row))
    }

    /// Whether the kept channels of `row`, of 16 bits, are those of the dense key in `slot`.
    fn has_kept_channels(&self, slot: &[u8], row: &[u8]) -> bool {
        let stored = (0..self.kept()).map(|n| read_f16(row, self.codes_at() + 2 * n));
        let kept = (0..self.head_dim()).filter(|&j| bit(&row[..self.mask_bytes()], j));
        stored.zip(kept).all(|(stored, j)| {
            let dense = read_f16(slot, 2 * j);
            dense == stored || stored == 0.0 && dense == LEAST.to_f32()
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::format::PrunedKey;
    use crate::method::select;

    /// A key, its row and its slot.
    fn stored(layout: &KeyLayout, key: &[f32]) -> (Vec<u8>, Vec<u8>) {
        let (mut mask, scale) = (vec![0; key.len() / 8], vec![1.0; key.len()]);
        select(key, &scale, layout.kept(), &mut mask);
        let (mut row, mut slot) = (vec![0; layout.row_bytes()], vec![0; 2 * key.len()]);
        layout.encode(PrunedKey { key, mask: &mask, scale: &scale, recovery: 0.5 }, &mut row);
        write_dense_key(key, &mut slot);
        (row, slot)
    }

    /// Numbers of all sizes, zeros and what float16 rounds to zero among them.
    fn channel() -> impl Strategy<Value = f32> {
        prop_oneof![-50f32..50.0, -1e-7f32..1e-7, Just(0.0), Just(-0.0), Just(1e-30), Just(-1e-30), Just(65504.0)]
    }

    proptest! {
        #[test]
        fn a_key_is_that_of_its_row_and_of_no_other(
            (d, kept) in (4usize..=32).prop_flat_map(|n| (Just(8 * n), 1..=8 * n)),
            bits in prop::sample::select(vec![Bits::B16, Bits::B8, Bits::B4]),
            keys in prop::collection::vec(prop::collection::vec(channel(), 256), 2),
        ) {
            let layout = KeyLayout::new(d, kept, bits, 0).unwrap();
            let [(row, slot), (other_row, other)] = [0, 1].map(|i| stored(&layout, &keys[i][..d]));
            prop_assert!(layout.is_dense_key(&slot, &row) && layout.is_dense_key(&other, &other_row));
            let same_signs = (0..d).all(|j| (keys[0][j] <= 0.0) == (keys[1][j] <= 0.0));
            prop_assert!(!layout.is_dense_key(&other, &row) || same_signs);
            let mut read = vec![f32::NAN; d];
            read_dense_key(&slot, &mut read);
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
            prop_assert!(!layout.is_dense_key(&slot, &row));
        }

        #[test]
        fn any_bytes_read_as_finite_numbers(slot in prop::collection::vec(any::<u8>(), 128)) {
            let mut key = [f32::NAN; 64];
            read_dense_key(&slot, &mut key);
            prop_assert!(key.iter().all(|x| x.is_finite()));
        }
    }
}
