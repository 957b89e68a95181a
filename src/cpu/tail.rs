//! Recent keys, dense: those of the host's own input, or those in the tail of a shared buffer.

use std::ops::Range;
use std::sync::Mutex;

use ndarray::s;

use super::attention::Attention;
use super::isa::rows::dense::read_dense_key;
use super::isa::vector::Vector;
use super::pool::{Pool, Serial};
use super::prune::Prune;
use crate::element::Element;
use crate::format::{KeyLayout, write_dense_key};

/// Bytes that memory is asked for at once.
const LINE: usize = 64;

/// Keys between the one that is read and the one that is asked for.
const AHEAD: usize = 4;

/// How slots of the tail are read.
pub(super) trait DenseReader {
    /// As [`KeyLayout::read_dense_key`].
    fn read(&self, layout: &KeyLayout, slot: &[u8], row: &[u8], key: &mut [f32]) -> bool;

    /// Asks memory for the cache line at `address`, which need not be readable.
    fn prefetch(&self, address: *const u8);
}

/// As the format has it.
pub(super) struct Scalar;

impl DenseReader for Scalar {
    fn read(&self, layout: &KeyLayout, slot: &[u8], row: &[u8], key: &mut [f32]) -> bool {
        layout.read_dense_key(slot, row, key)
    }

    fn prefetch(&self, _: *const u8) {}
}

/// With vectors.
pub(super) struct Vectors<V>(pub(super) V);

impl<V: Vector> DenseReader for Vectors<V> {
    #[inline(always)]
    fn read(&self, layout: &KeyLayout, slot: &[u8], row: &[u8], key: &mut [f32]) -> bool {
        read_dense_key(self.0, layout, slot, row, key)
    }

    #[inline(always)]
    fn prefetch(&self, address: *const u8) {
        self.0.prefetch::<false>(address);
    }
}

impl<T: Element> Attention<'_, T> {
    /// How many of the past keys of the (sequence, KV head) number `head`, the last ones, are read dense.
    pub(super) fn recent_keys(&self, head: usize) -> usize {
        let b = head / self.geometry.kv_heads;
        match (&self.recent, &self.tail) {
            (Some(_), _) => self.lengths.recent_before(b, self.settings.common.recent_window),
            (None, Some(tail)) => tail.layout.kept(tail.key[head].len() / self.geometry.key.row_bytes()),
            (None, None) => 0,
        }
        .min(self.lengths.past[b])
    }

    /// Reads the past keys at `positions`, all of them recent ones, to `keys`, `[positions, D]`. A key that the tail
    /// has lost is what its row says.
    #[inline(always)]
    pub(super) fn read_recent(&self, reader: impl DenseReader, head: usize, positions: Range<usize>, keys: &mut [f32]) {
        let (b, h) = (head / self.geometry.kv_heads, head % self.geometry.kv_heads);
        if let Some(recent) = &self.recent {
            let first = self.lengths.past[b] - self.recent_keys(head);
            let recent = recent.slice(s![b, h, positions.start - first..positions.end - first, ..]);
            keys.iter_mut().zip(recent).for_each(|(key, recent)| *key = recent.finite());
            return;
        }
        let tail = self.tail.as_ref().expect("recent keys are in one of the two");
        let tail = tail.layout.read(tail.key[head], tail.value[head]);
        let layout = &self.geometry.key;
        let (d, bytes) = (layout.head_dim(), layout.row_bytes());
        // Slots lie backwards and alternate between two buffers: hardware prefetch does not follow that well.
        let ask = |position: usize| {
            let lines = tail.slots(position).next().into_iter().flat_map(|slot| slot.chunks(LINE));
            lines.for_each(|line| reader.prefetch(line.as_ptr()));
        };
        for (position, key) in positions.zip(keys.chunks_exact_mut(d)) {
            if position + AHEAD < self.lengths.past[b] {
                ask(position + AHEAD);
            }
            let row = &self.past_key[head][position * bytes..(position + 1) * bytes];
            let mut found = false;
            for slot in tail.slots(position) {
                found = found
                    || match layout.planes() {
                        Some(planes) => planes.read_dense_key(slot, row, key),
                        None => reader.read(layout, slot, row, key),
                    };
            }
            if !found {
                self.read_row(head, position, key);
            }
        }
    }
}

/// New keys that are written without asking a pool for help.
const FEW_KEYS: usize = 64;

/// Writes the last new keys of each (sequence, KV head), the head varying fastest, to the `slots` of its tail.
pub fn write_tail<T: Element>(pool: &dyn Pool, call: &Prune<'_, T>, slots: Vec<Vec<&mut [u8]>>) {
    let kv_heads = call.geometry.kv_heads;
    let keys: usize = slots.iter().map(Vec::len).sum();
    let slots: Vec<_> = slots.into_iter().map(Mutex::new).collect();
    let write = |head: usize| {
        let (b, h) = (head / kv_heads, head % kv_heads);
        let mut key = vec![0.0; call.geometry.head_dim()];
        // Each is locked once, by the thread that writes it.
        let slots = &mut *slots[head].lock().unwrap();
        let first = call.lengths.new[b] - slots.len();
        for (slot, token) in slots.iter_mut().zip(first..) {
            call.tokens.key(b, h, token, &mut key);
            write_dense_key(&key, slot);
        }
    };
    match keys <= FEW_KEYS {
        true => Serial.par_for(slots.len(), &write),
        false => pool.par_for(slots.len(), &write),
    }
}
