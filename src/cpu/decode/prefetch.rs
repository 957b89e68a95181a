//! Software prefetch: rows come in too many strides, and too fast, for the hardware to predict them all.

use crate::cpu::isa::vector::Vector;

/// Rows that are asked for together where one, two or four are read at once: asking costs a few instructions each time,
/// but a core waits that asks for too much at once.
pub(in crate::cpu) const FEW: usize = 4;

/// Bytes of keys, and of values, from those that are read to those that are asked for, long enough to read for memory
/// to answer: in the nearest cache, of which both fill half or more, and in the second.
const NEAR: usize = 12 << 10;
const FAR: usize = 32 << 10;

/// Most bytes of a key and its value that are asked into the nearest cache, with AVX-512 and without. A core can wait
/// for only a few lines at a time there, too few for larger rows, and with AVX-512 for keys in planes, which are read
/// fast; others are read faster from there.
const SMALL_512: usize = 256;
const SMALL: usize = 192;

/// Bytes of a cache line.
const LINE: usize = 64;

/// Key and value rows that are read one after the other, a chunk's keys first and then its values. Some of the values
/// are asked for along with keys, which take longer to read, so that memory is asked evenly.
#[derive(Clone, Copy)]
pub(in crate::cpu) struct Prefetch<'a> {
    key: Rows<'a>,
    value: Rows<'a>,
    /// Whether keys are in planes.
    planes: bool,
}

#[derive(Clone, Copy)]
struct Rows<'a> {
    rows: &'a [u8],
    bytes: usize,
}

impl<'a> Prefetch<'a> {
    /// Of `key` and `value` rows and the bytes that each takes, and whether keys are in planes.
    pub(in crate::cpu) fn new(key: (&'a [u8], usize), value: (&'a [u8], usize), planes: bool) -> Self {
        let [key, value] = [key, value].map(|(rows, bytes)| Rows { rows, bytes });
        Self { key, value, planes }
    }

    /// As key row number `n` is read: if that is a multiple of `together`, asks for what follows so many rows, and for
    /// half of what follows their values. [`Self::at_value`] asks for the other half. Where it has another `together`,
    /// a quarter of the values is not asked for: in AVX-512 without VNNI, if only keys or only values are float16.
    #[inline(always)]
    pub(in crate::cpu) fn at_key(&self, v: impl Vector, n: usize, together: usize) {
        if n.is_multiple_of(together) {
            self.ask(v, self.key, self.key.bytes * n, self.key.bytes * together);
            self.ask(v, self.value, self.value.bytes * n, self.value.bytes * together / 2);
        }
    }

    /// As [`Self::at_key`], of value rows and the half that it leaves.
    #[inline(always)]
    pub(in crate::cpu) fn at_value(&self, v: impl Vector, n: usize, together: usize) {
        if n.is_multiple_of(together) {
            let half = self.value.bytes * together / 2;
            self.ask(v, self.value, self.value.bytes * n + half, half);
        }
    }

    /// Asks for what follows `count` bytes from byte `first` of `of` on.
    #[inline(always)]
    fn ask<V: Vector>(&self, v: V, of: Rows, first: usize, count: usize) {
        let at = |distance: usize| of.rows.as_ptr().wrapping_add(first + distance);
        let bytes = self.key.bytes + self.value.bytes;
        let far = if V::REGISTERS == 1 { self.planes || bytes > SMALL_512 } else { bytes > SMALL };
        if far {
            (0..count).step_by(LINE).for_each(|n| v.prefetch::<true>(at(FAR + n)));
        } else {
            (0..count).step_by(LINE).for_each(|n| v.prefetch::<false>(at(NEAR + n)));
        }
    }
}
