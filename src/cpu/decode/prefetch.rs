//! Software prefetch: rows come in too many strides, and too fast, for the hardware to predict them all.

use crate::cpu::isa::vector::Vector;

/// Bytes of keys, and of values, from those that are read to those that are asked for: both together fill half of a
/// core's nearest cache or more, and take long enough to read for memory to answer.
const DISTANCE: usize = 12 << 10;

/// Most bytes of a key and its value of which [`MANY`] rows are asked for together, and not [`FEW`]. Asking costs a few
/// instructions each time; but a core waits that asks for too much at once.
const SMALL: usize = 128;
const MANY: usize = 16;
/// Rows that kernels of many rows ask for at once, or a power of 2 times as many.
pub(in crate::cpu) const FEW: usize = 4;

/// Key and value rows that are read one after the other, a chunk's keys first and then its values. Some of the values
/// are asked for along with keys, which take longer to read, so that memory is asked evenly.
#[derive(Clone, Copy)]
pub(in crate::cpu) struct Prefetch<'a> {
    key: Rows<'a>,
    value: Rows<'a>,
    /// Rows that are asked for together.
    together: usize,
}

#[derive(Clone, Copy)]
struct Rows<'a> {
    rows: &'a [u8],
    bytes: usize,
    /// Cache lines that a row takes, more or less.
    lines: usize,
}

impl<'a> Prefetch<'a> {
    /// Of `key` and `value` rows and the bytes that each takes.
    pub(in crate::cpu) fn new(key: (&'a [u8], usize), value: (&'a [u8], usize)) -> Self {
        let [key, value] = [key, value].map(|(rows, bytes)| Rows { rows, bytes, lines: bytes.div_ceil(64) });
        Self { key, value, together: 1 }
    }

    /// For kernels that read many keys at once, and values by [`Self::at_some_values`]: half of the bytes of some value
    /// rows are asked for along with as many keys, not half of each row.
    pub(in crate::cpu) fn reads_many(mut self, many: bool) -> Self {
        if many {
            self.together = if self.key.bytes + self.value.bytes <= SMALL { MANY } else { FEW };
        }
        self
    }

    /// Asks for what follows the key row number `n`.
    #[inline(always)]
    pub(in crate::cpu) fn at_key<V: Vector>(&self, v: V, n: usize) {
        self.key.prefetch(v, n, 0, self.key.lines);
        self.value.prefetch(v, n, 0, self.value.lines / 2);
    }

    /// Asks for what follows the value row number `n`.
    #[inline(always)]
    pub(in crate::cpu) fn at_value<V: Vector>(&self, v: V, n: usize) {
        self.value.prefetch(v, n, self.value.lines / 2, self.value.lines);
    }

    /// The same where many rows are read at once: asks for some together, as [`Self::reads_many`] says, when `n` is the
    /// first of them. `n` is a multiple of [`FEW`].
    #[inline(always)]
    pub(in crate::cpu) fn at_few_keys<V: Vector>(&self, v: V, n: usize) {
        match self.together {
            1 => (n..n + FEW).for_each(|n| self.at_key(v, n)),
            together if n & (together - 1) == 0 => self.at_keys(v, n, together),
            _ => {}
        }
    }

    /// As [`Self::at_few_keys`], before value rows from number `n` on are read, `count` of them.
    #[inline(always)]
    pub(in crate::cpu) fn at_some_values<V: Vector>(&self, v: V, n: usize, count: usize) {
        match self.together {
            1 => (n..n + count).for_each(|n| self.at_value(v, n)),
            together if n & (together - 1) == 0 => self.at_values(v, n, together),
            _ => {}
        }
    }

    /// As [`Self::at_key`], of `count` rows from number `first` on.
    #[inline(always)]
    pub(in crate::cpu) fn at_keys<V: Vector>(&self, v: V, first: usize, count: usize) {
        let (keys, values) = (self.key.bytes * count, self.value.bytes * count);
        self.key.prefetch_bytes(v, self.key.bytes * first, keys);
        self.value.prefetch_bytes(v, self.value.bytes * first, values / 2);
    }

    /// As [`Self::at_value`], of `count` rows from number `first` on.
    #[inline(always)]
    pub(in crate::cpu) fn at_values<V: Vector>(&self, v: V, first: usize, count: usize) {
        let values = self.value.bytes * count;
        self.value.prefetch_bytes(v, self.value.bytes * first + values / 2, values.div_ceil(2));
    }
}

impl Rows<'_> {
    /// Prefetches lines `first` to `last` of the row that is [`DISTANCE`] beyond number `n`, if there is one.
    #[inline(always)]
    fn prefetch<V: Vector>(&self, v: V, n: usize, first: usize, last: usize) {
        let at = |line: usize| self.rows.as_ptr().wrapping_add(n * self.bytes + DISTANCE + 64 * line);
        // The branches of a loop over one or two lines cost more than asking for a line too many.
        v.prefetch(at(first));
        if last > first + 1 {
            v.prefetch(at(first + 1));
            if last > first + 2 {
                for line in first + 2..last {
                    v.prefetch(at(line));
                }
            }
        }
    }

    /// Prefetches `count` bytes that are [`DISTANCE`] beyond byte `first`.
    #[inline(always)]
    fn prefetch_bytes<V: Vector>(&self, v: V, first: usize, count: usize) {
        for at in (0..count).step_by(64) {
            v.prefetch(self.rows.as_ptr().wrapping_add(first + DISTANCE + at));
        }
    }
}
