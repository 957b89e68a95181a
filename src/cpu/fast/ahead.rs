//! Rows asked for before they are read: they come in too many strides, and too fast, for a processor to foresee them all.

/// Bytes of keys, and of values, from those that are read to those that are asked for: both together fill half of a core's
/// nearest cache or more, and take long enough to read for memory to answer.
const AHEAD: usize = 12 << 10;

/// Key and value rows that are read one after the other, a chunk's keys first and then its values. Some of the values are
/// asked for along with keys, which take longer to read, so that memory is asked evenly.
#[derive(Clone, Copy)]
pub(super) struct Ahead<'a> {
    key: Rows<'a>,
    value: Rows<'a>,
}

#[derive(Clone, Copy)]
struct Rows<'a> {
    rows: &'a [u8],
    bytes: usize,
}

impl<'a> Ahead<'a> {
    /// Of `key` and `value` rows and the bytes that each takes.
    pub(super) fn new(key: (&'a [u8], usize), value: (&'a [u8], usize)) -> Self {
        let [key, value] = [key, value].map(|(rows, bytes)| Rows { rows, bytes });
        Self { key, value }
    }

    /// Asks for what follows the key row number `n`.
    #[inline(always)]
    pub(super) fn at_key(&self, n: usize) {
        self.key.ask(n, 0, self.key.lines());
        self.value.ask(n, 0, self.value.lines() / 2);
    }

    /// Asks for what follows the value row number `n`.
    #[inline(always)]
    pub(super) fn at_value(&self, n: usize) {
        self.value.ask(n, self.value.lines() / 2, self.value.lines());
    }
}

impl Rows<'_> {
    /// Lines of the processor's cache that a row takes, more or less.
    #[inline(always)]
    fn lines(&self) -> usize {
        self.bytes.div_ceil(64)
    }

    /// Asks for lines number `first` to `last` of the row that is [`AHEAD`] of number `n`; nothing happens if it is not there.
    #[inline(always)]
    fn ask(&self, n: usize, first: usize, last: usize) {
        let at = |line: usize| self.rows.as_ptr().wrapping_add(n * self.bytes + AHEAD + 64 * line);
        // The branches of a loop over one or two lines cost more than asking for a line too many.
        ask(at(first));
        if last > first + 1 {
            ask(at(first + 1));
            if last > first + 2 {
                (first + 2..last).for_each(|line| ask(at(line)));
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn ask(address: *const u8) {
    use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
    // SAFETY: asking reads nothing and faults on no address.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) };
}

#[cfg(not(target_arch = "x86_64"))]
#[inline(always)]
fn ask(_: *const u8) {}
