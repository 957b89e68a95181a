//! The tail of a shared buffer: recent keys, dense, in the rows that no token has taken yet. The page that describes it
//! is the section of that name in `docs/format.md`.
//!
//! A slot holds one key of `D` float16. Slots fill the buffers of one (sequence, KV head) from their ends, some in the
//! key buffer, some in the value buffer, and are numbered by the free rows that they need: as rows fill the buffer, the
//! slots of the highest numbers go first. Nothing says which key a slot holds; whoever reads one asks the key's row.

use super::v1::layout::{KeyLayout, ValueLayout};

/// How many keys a tail keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TailSize {
    window: usize,
    slot_bytes: usize,
    key_row: usize,
    value_row: usize,
}

impl TailSize {
    /// Of the tail beside `key` and `value` rows that keeps at most `window` keys.
    pub fn new(key: &KeyLayout, value: &ValueLayout, window: usize) -> Self {
        Self { window, slot_bytes: 2 * key.head_dim(), key_row: key.row_bytes(), value_row: value.row_bytes() }
    }

    /// Slots, of any number, that lie wholly within the last `free` rows of both buffers.
    fn fitting(&self, free: usize) -> usize {
        free * self.key_row / self.slot_bytes + free * self.value_row / self.slot_bytes
    }

    /// Keys that are kept where `free` rows are: the window, or, where it does not fit, the greatest of its half,
    /// quarter and so on that does. So it is the last keys that are kept, and slots keep their keys when the window is
    /// halved.
    pub fn kept(&self, free: usize) -> usize {
        let fitting = self.fitting(free);
        let mut kept = self.window;
        while kept > fitting {
            kept /= 2;
        }
        kept
    }
}

/// Where the slots of one (sequence, KV head) lie, and which of them a position takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TailLayout {
    size: TailSize,
    /// By their numbers.
    slots: Vec<Slot>,
}

/// The buffer that a slot lies in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TailBuffer {
    /// past_key, present_key
    Key,
    /// past_value, present_value
    Value,
}

/// Where a slot lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// In which buffer.
    pub buffer: TailBuffer,
    /// Slots of this buffer behind it.
    pub from_end: usize,
}

impl TailLayout {
    /// The tail beside `key` and `value` rows that keeps at most `window` keys, in buffers of `capacity` rows.
    pub fn new(key: &KeyLayout, value: &ValueLayout, window: usize, capacity: usize) -> Self {
        let size = TailSize::new(key, value, window);
        let (mut keys, mut values) = (0, 0);
        let slots = (0..window.min(size.fitting(capacity))).map(|_| {
            // Number n of a buffer needs (n + 1) * slot_bytes / row_bytes free rows; of equal ones the key buffer's is
            // first.
            let (buffer, used) = match (keys + 1) * size.value_row <= (values + 1) * size.key_row {
                true => (TailBuffer::Key, &mut keys),
                false => (TailBuffer::Value, &mut values),
            };
            *used += 1;
            Slot { buffer, from_end: *used - 1 }
        });
        Self { size, slots: slots.collect() }
    }

    /// Keys that are kept where `free` rows are: [`TailSize::kept`].
    pub fn kept(&self, free: usize) -> usize {
        self.size.kept(free)
    }

    /// Bytes of the slot `n` within `bytes` of one of the buffers that end where the buffer does; `None` if it does not
    /// lie wholly within them.
    fn range(&self, slot: Slot, bytes: usize) -> Option<std::ops::Range<usize>> {
        let end = bytes.checked_sub(slot.from_end * self.size.slot_bytes)?;
        Some(end.checked_sub(self.size.slot_bytes)?..end)
    }

    /// The tail in the free rows of `key` and `value` buffer.
    pub fn read<'a>(&'a self, key: &'a [u8], value: &'a [u8]) -> Tail<'a> {
        let kept = self.kept(key.len() / self.size.key_row);
        let mut before = self.size.window;
        while before / 2 > kept {
            before /= 2;
        }
        Tail { layout: self, key, value, kept, before: Some(before).filter(|&before| before > kept && kept > 0) }
    }

    /// Where the last keys before position `total` go in the free rows of `key` and `value` buffer after a call, in
    /// order of their positions. There are at most `wanted` of them.
    pub fn write<'a>(&self, total: usize, wanted: usize, key: &'a mut [u8], value: &'a mut [u8]) -> Vec<&'a mut [u8]> {
        let kept = self.kept(key.len() / self.size.key_row);
        let count = wanted.min(kept).min(total);
        // From the end of each buffer, one after the other.
        let mut wanted: Vec<_> =
            (total - count..total).map(|position| (self.slots[position % kept], position)).collect();
        wanted.sort_unstable_by_key(|(slot, _)| slot.from_end);
        let mut slots = Vec::with_capacity(count);
        for (buffer, free) in [(TailBuffer::Key, key), (TailBuffer::Value, value)] {
            let (mut rest, mut passed) = (free.rchunks_exact_mut(self.size.slot_bytes), 0);
            for &(slot, position) in wanted.iter().filter(|(slot, _)| slot.buffer == buffer) {
                let bytes = rest.nth(slot.from_end - passed).expect("as many slots are kept as lie in free rows");
                slots.push((position, bytes));
                passed = slot.from_end + 1;
            }
        }
        slots.sort_unstable_by_key(|(position, _)| *position);
        slots.into_iter().map(|(_, bytes)| bytes).collect()
    }
}

/// The tail of one (sequence, KV head), to be read.
#[derive(Clone, Copy, Debug)]
pub struct Tail<'a> {
    layout: &'a TailLayout,
    key: &'a [u8],
    value: &'a [u8],
    kept: usize,
    /// The window before it was last halved.
    before: Option<usize>,
}

impl<'a> Tail<'a> {
    /// How many of the last keys it may hold.
    pub fn kept(&self) -> usize {
        self.kept
    }

    /// Slots that may hold the key at `position`: its own, and the one of the window before it was last halved, as long
    /// as no row lies there.
    ///
    /// # Panics
    /// If no key is kept.
    pub fn slots(&self, position: usize) -> impl Iterator<Item = &'a [u8]> {
        let Self { layout, key, value, kept, before } = *self;
        let own = position % kept;
        let earlier = before.map(|before| position % before).filter(|&number| number != own);
        std::iter::once(own).chain(earlier).filter_map(move |number| {
            let slot = *layout.slots.get(number)?;
            let bytes = if slot.buffer == TailBuffer::Key { key } else { value };
            Some(&bytes[layout.range(slot, bytes.len())?])
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::format::Bits;

    /// Rows of a buffer at most. Miri looks at every byte of every row.
    const MOST_ROWS: usize = if cfg!(miri) { 10 } else { 200 };

    /// Layouts of rows, a window, and the rows of a buffer.
    fn case() -> impl Strategy<Value = (KeyLayout, ValueLayout, usize, usize)> {
        let bits = || prop::sample::select(vec![Bits::B16, Bits::B8, Bits::B4]);
        let window = prop::sample::select(vec![1usize, 2, 3, 8, 48, 64, 100, 1 << 30]);
        (1usize..=8, 1usize..=32, bits(), bits(), 0usize..40, 0usize..40, window, 0..MOST_ROWS).prop_map(
            |(n, kept, key_bits, value_bits, key_padding, value_padding, window, capacity)| {
                let d = 32 * n;
                let bytes = |tight: usize, padding: usize| tight + 4 * padding;
                let key = KeyLayout::new(d, kept * n, key_bits, 0).unwrap();
                let key = KeyLayout::new(d, kept * n, key_bits, bytes(key.row_bytes(), key_padding)).unwrap();
                let value = ValueLayout::new(d, value_bits, 0).unwrap();
                let value = ValueLayout::new(d, value_bits, bytes(value.row_bytes(), value_padding)).unwrap();
                (key, value, window, capacity)
            },
        )
    }

    proptest! {
        /// Filled row by row: every slot lies in free rows, and what is written is found until a row comes or it is not
        /// one of the kept keys any more.
        #[test]
        fn keys_are_found_until_rows_take_their_place((key, value, window, capacity) in case(), first in 0..MOST_ROWS) {
            let layout = TailLayout::new(&key, &value, window, capacity);
            let mut buffers = [vec![0; capacity * key.row_bytes()], vec![0; capacity * value.row_bytes()]];
            let d = key.head_dim();
            let mut written_before = 0;
            for total in first.min(capacity)..=capacity {
                let new = if written_before == 0 { total } else { 1 };
                let [key_free, value_free] = {
                    let [keys, values] = &mut buffers;
                    let (rows, key_free) = keys.split_at_mut(total * key.row_bytes());
                    rows.fill(0xff);
                    let (rows, value_free) = values.split_at_mut(total * value.row_bytes());
                    rows.fill(0xff);
                    [key_free, value_free]
                };
                let slots = layout.write(total, new, key_free, value_free);
                let count = slots.len();
                prop_assert_eq!(count, new.min(layout.kept(capacity - total)));
                for (slot, position) in slots.into_iter().zip(total - count..) {
                    prop_assert_eq!(slot.len(), 2 * d);
                    slot.fill(0);
                    slot[..8].copy_from_slice(&(position as u64).to_le_bytes());
                }
                written_before += count;
                // All rows are as they were written, whatever went to the tail.
                prop_assert!(buffers[0][..total * key.row_bytes()].iter().all(|&b| b == 0xff));
                prop_assert!(buffers[1][..total * value.row_bytes()].iter().all(|&b| b == 0xff));
                let free = [&buffers[0][total * key.row_bytes()..], &buffers[1][total * value.row_bytes()..]];
                let tail = layout.read(free[0], free[1]);
                prop_assert_eq!(tail.kept(), layout.kept(capacity - total));
                let holds = |position: usize| {
                    tail.slots(position).any(|slot| slot[..8] == (position as u64).to_le_bytes())
                };
                // A key that was kept by the window before it was halved may be lost to a row, the others may not.
                let never_halved = layout.kept(capacity - first.min(capacity)) == tail.kept();
                for position in total.saturating_sub(tail.kept())..total {
                    let kept_then = |n| layout.kept(capacity - (total - n));
                    let since_halved = (0..total - position).all(|n| kept_then(n) == tail.kept());
                    if never_halved || since_halved && position >= first {
                        prop_assert!(holds(position), "{} of {}, {} kept", position, total, tail.kept());
                    }
                }
            }
        }

        #[test]
        fn no_two_slots_overlap((key, value, window, capacity) in case()) {
            let layout = TailLayout::new(&key, &value, window, capacity);
            let mut bytes = [vec![false; capacity * key.row_bytes()], vec![false; capacity * value.row_bytes()]];
            for (number, &slot) in layout.slots.iter().enumerate() {
                let buffer = &mut bytes[usize::from(slot.buffer == TailBuffer::Value)];
                let range = layout.range(slot, buffer.len()).expect("within the buffer");
                prop_assert!(buffer[range.clone()].iter().all(|taken| !taken));
                buffer[range.clone()].fill(true);
                // It is within the free rows exactly where its number says so.
                let row = if slot.buffer == TailBuffer::Key { key.row_bytes() } else { value.row_bytes() };
                for free in 0..=capacity {
                    let in_free_rows = range.start >= (capacity - free) * row;
                    prop_assert_eq!(number < layout.size.fitting(free), in_free_rows);
                }
            }
        }
    }

    #[test]
    fn the_window_is_halved_until_it_fits() {
        // Slots of 64 bytes; of 16 + 20 bytes a row, 12 rows hold 3 + 3 slots.
        let key = KeyLayout::new(32, 4, Bits::B4, 16).unwrap();
        let value = ValueLayout::new(32, Bits::B4, 20).unwrap();
        let layout = TailLayout::new(&key, &value, 8, 100);
        let kept = |free| layout.kept(free);
        assert_eq!((kept(100), kept(16), kept(15), kept(12), kept(8), kept(4), kept(3)), (8, 8, 4, 4, 4, 2, 0));
        let place = |n: usize| (layout.slots[n].buffer, layout.slots[n].from_end);
        use TailBuffer::{Key, Value};
        // They need 3.2, 4, 6.4, 8 and so on rows.
        assert_eq!([0, 1, 2, 3].map(place), [(Value, 0), (Key, 0), (Value, 1), (Key, 1)]);
    }
}
