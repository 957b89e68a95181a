//! Software prefetch: rows come in too many strides, and too fast, for the hardware to predict them all.

use crate::cpu::isa::vector::Vector;

/// Rows that are asked for together, where vectors of AVX-512 read keys that are not in planes, one or two at a time,
/// and elsewhere: asking costs a few instructions each time, but a core waits that asks for too much at once.
const FEW: usize = 4;
pub(in crate::cpu) const MANY: usize = 8;

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

    /// As key row number `n` is read: if that is the first of some rows that are asked for together, asks for what
    /// follows so many rows, and for half of what follows their values. [`Self::at_value`] asks for the other half.
    /// Where it is told of other vectors, a quarter of the values is not asked for: in AVX-512 without VNNI, if only
    /// keys or only values are float16.
    #[inline(always)]
    pub(in crate::cpu) fn at_key<V: Vector>(&self, v: V, n: usize) {
        let together = self.together::<V>();
        if n.is_multiple_of(together) {
            self.ask(v, self.key, self.key.bytes * n, self.key.bytes * together);
            self.ask(v, self.value, self.value.bytes * n, self.value.bytes * together / 2);
        }
    }

    /// As [`Self::at_key`], of value rows and the half that it leaves.
    #[inline(always)]
    pub(in crate::cpu) fn at_value<V: Vector>(&self, v: V, n: usize) {
        let together = self.together::<V>();
        if n.is_multiple_of(together) {
            let half = self.value.bytes * together / 2;
            self.ask(v, self.value, self.value.bytes * n + half, half);
        }
    }

    /// How many rows are asked for together.
    #[inline(always)]
    fn together<V: Vector>(&self) -> usize {
        if V::REGISTERS == 1 && !self.planes { FEW } else { MANY }
    }

    /// Asks for what follows `count` bytes from byte `first` of `of` on.
    #[inline(always)]
    fn ask<V: Vector>(&self, v: V, of: Rows, first: usize, count: usize) {
        let bytes = self.key.bytes + self.value.bytes;
        let far = if V::REGISTERS == 1 { self.planes || bytes > SMALL_512 } else { bytes > SMALL };
        let first = of.rows.as_ptr().wrapping_add(first + if far { FAR } else { NEAR });
        let ask = |address| if far { v.prefetch::<true>(address) } else { v.prefetch::<false>(address) };
        if self.together::<V>() == MANY {
            // The lines that begin there, so that each is asked for once.
            let end = first.wrapping_add(count);
            let mut line = first.map_addr(|address| address.next_multiple_of(LINE));
            while line < end {
                ask(line);
                line = line.wrapping_add(LINE);
            }
        } else {
            // As many lines each time, some of them twice: a varying number costs more in branches.
            (0..count).step_by(LINE).for_each(|n| ask(first.wrapping_add(n)));
        }
    }
}
