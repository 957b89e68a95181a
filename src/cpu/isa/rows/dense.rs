//! Dense keys in the tail of a shared buffer, sixteen channels at a time.

use crate::cpu::isa::vector::{LANES, Vector};
use crate::format::v1::layout::{Bits, KeyLayout};

/// Half of the least positive float16: added to a zero, it makes it positive.
const TINY: f32 = 1.0 / (1 << 25) as f32;

/// As [`KeyLayout::read_dense_key`], the reference: reads the dense key in `slot` into `key` and says whether it
/// is the one that `row` was made from. D is a multiple of [`LANES`].
///
/// # Panics
/// If a length is not what the layout says.
#[inline(always)]
pub(in crate::cpu) fn read_dense_key<V: Vector>(
    v: V,
    layout: &KeyLayout,
    slot: &[u8],
    row: &[u8],
    key: &mut [f32],
) -> bool {
    let d = layout.head_dim();
    assert_eq!((slot.len(), row.len(), key.len(), d % LANES), (2 * d, layout.row_bytes(), d, 0));
    let (mask, rest) = row.split_at(layout.mask_bytes());
    let whole = layout.bits() == Bits::B16;
    let words = |plane: &[u8], n: usize| u16::from_le_bytes([plane[2 * n], plane[2 * n + 1]]);
    let mut least = v.splat(1.0);
    for (n, (slot, key)) in slot.as_chunks::<{ 2 * LANES }>().0.iter().zip(key.as_chunks_mut::<LANES>().0).enumerate() {
        let x = v.load_f16::<true>(slot);
        v.store(x, key);
        let signs = words(rest, n);
        // Positive where the channel is above 0 and the row says so, or neither.
        let agrees = v.add(v.negate(signs, x), v.select(signs, v.splat(TINY), v.splat(0.0)));
        // With 16 bits the sign of a kept channel is not in the plane.
        let told = if whole { !words(mask, n) } else { u16::MAX };
        least = v.min(least, v.select(told, agrees, v.splat(1.0)));
    }
    let same_signs = v.greatest(v.negate(u16::MAX, least)) < 0.0;
    same_signs && (!whole || layout.has_kept_channels(slot, row))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::cpu::isa::InstructionSet;
    use crate::cpu::isa::traits::{Isa, Work};
    use crate::format::v1::dense::tests::{channel, stored};

    /// A key to be read.
    struct Read<'a> {
        layout: &'a KeyLayout,
        slot: &'a [u8],
        row: &'a [u8],
        key: &'a mut [f32],
    }

    impl Work for Read<'_> {
        type Output = bool;

        #[inline(always)]
        fn with<I: Isa>(self, isa: I) -> bool {
            read_dense_key(isa.vector(), self.layout, self.slot, self.row, self.key)
        }
    }

    proptest! {
        /// The key of the row, in whose slot one float16 is any other.
        #[test]
        fn every_set_agrees_with_the_format(
            (blocks, kept) in (2usize..=16).prop_flat_map(|n| (Just(n), 1..=16 * n)),
            bits in prop::sample::select(vec![Bits::B16, Bits::B8, Bits::B4]),
            key in prop::collection::vec(channel(), 256), at in any::<prop::sample::Index>(), other: Option<u16>,
        ) {
            let d = LANES * blocks;
            let layout = KeyLayout::new(d, kept, bits, 0).unwrap();
            let (row, mut slot) = stored(&layout, &key[..d]);
            if let Some(other) = other {
                let at = 2 * at.index(d);
                slot[at..at + 2].copy_from_slice(&other.to_le_bytes());
            }
            let mut expected = vec![f32::NAN; d];
            let found = layout.read_dense_key(&slot, &row, &mut expected);
            prop_assert!(found || other.is_some());
            for set in InstructionSet::ALL.into_iter().filter(|set| set.is_available()) {
                let mut read = vec![f32::NAN; d];
                let work = Read { layout: &layout, slot: &slot, row: &row, key: &mut read };
                prop_assert_eq!(set.with(work), found, "{}", set.name());
                prop_assert!(read.iter().zip(&expected).all(|(a, b)| a == b), "{}", set.name());
            }
        }
    }
}
