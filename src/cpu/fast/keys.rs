//! Key rows, sixteen channels at a time.

use super::window;
use crate::cpu::vector::{LANES, Vector};
use crate::format::{Bits, KeyLayout, MAX_HEAD_DIM};

/// Bytes beyond the last code that a vector may reach.
const BEYOND: usize = 2 * LANES;

/// Most bytes that the fields of a row take.
const MOST_BYTES: usize = MAX_HEAD_DIM / 4 + 6 + 2 * MAX_HEAD_DIM;

/// Reads key rows.
pub(super) struct KeyReader<'a> {
    layout: &'a KeyLayout,
    recover: bool,
    /// Bytes that the fields take.
    used: usize,
}

/// What becomes of a key, block by block.
pub(super) trait Sink<V: Vector> {
    /// Takes the channels of block `n`. To be `inline(always)`.
    ///
    /// # Safety
    /// The processor has the instructions of `V`.
    unsafe fn take(&mut self, n: usize, x: V::Lanes);
}

/// Leaves the first `kept` bits of `mask`, as rows with too many are read.
pub(super) fn truncate(mask: &mut [u8], kept: usize) {
    let mut left = kept;
    for byte in mask {
        while byte.count_ones() as usize > left {
            *byte &= !(1 << (7 - byte.leading_zeros()));
        }
        left -= byte.count_ones() as usize;
    }
}

impl<'a> KeyReader<'a> {
    /// For rows of `layout`, whose pruned channels read as zero unless `recover`.
    pub(super) fn new(layout: &'a KeyLayout, recover: bool) -> Self {
        Self { layout, recover, used: layout.codes_at() + layout.bits().bytes(layout.kept()) }
    }

    /// Whether pruned channels read as what was recovered of them.
    pub(super) fn recovers(&self) -> bool {
        self.recover
    }

    /// Whether [`Self::read`] gives channels in units of c.
    pub(super) fn in_units(&self) -> bool {
        self.layout.bits() != Bits::B16
    }

    /// Gives `sink` each block of channels of a key: as stored with 16 bits, `scale` being c, in units of c otherwise.
    /// `rows` begins with the row; what follows it may be read and is not looked at.
    ///
    /// # Safety
    /// The processor has the instructions of `V`.
    #[inline(always)]
    pub(super) unsafe fn read<V: Vector>(&self, rows: &[u8], scale: &[[f32; LANES]], sink: &mut impl Sink<V>) {
        let (words, rest) = rows[..self.layout.mask_bytes()].as_chunks::<8>();
        let mut marked = 0;
        for word in words {
            marked += u64::from_le_bytes(*word).count_ones();
        }
        for byte in rest {
            marked += byte.count_ones();
        }
        let usual = rows.len() >= self.used + BEYOND && marked as usize <= self.layout.kept();
        // SAFETY: as this function.
        unsafe {
            if usual && (self.in_units() || V::ordinary(&rows[self.layout.codes_at()..self.used])) {
                self.read_usual::<V, false>(rows, scale, sink);
            } else {
                self.read_copy::<V>(rows, scale, sink);
            }
        }
    }

    /// Reads the last row, which ends with its memory, or one with too many channels marked, infinity or NaN.
    #[cold]
    #[inline(never)]
    unsafe fn read_copy<V: Vector>(&self, rows: &[u8], scale: &[[f32; LANES]], sink: &mut impl Sink<V>) {
        let mut copy = [0; MOST_BYTES + BEYOND];
        copy[..self.used].copy_from_slice(&rows[..self.used]);
        truncate(&mut copy[..self.layout.mask_bytes()], self.layout.kept());
        // SAFETY: as the caller.
        unsafe { self.read_usual::<V, true>(&copy, scale, sink) };
    }

    #[inline(always)]
    unsafe fn read_usual<V: Vector, const SPECIAL: bool>(
        &self,
        rows: &[u8],
        scale: &[[f32; LANES]],
        sink: &mut impl Sink<V>,
    ) {
        let layout = self.layout;
        let row = &rows[..self.used + BEYOND];
        let planes = layout.mask_bytes();
        let masks = row[..planes].as_chunks::<2>().0;
        let signs = row[planes..2 * planes].as_chunks::<2>().0;
        let blocks = masks.iter().zip(signs).map(|(&m, &s)| (u16::from_le_bytes(m), u16::from_le_bytes(s)));
        let blocks = blocks.zip(scale).enumerate();
        let codes = &row[layout.codes_at()..];
        let mut used = 0;
        // SAFETY: as the callers.
        unsafe {
            let [recovery, least, step, ..] = V::halves(window(row, layout.scalars_at()));
            let pruned = V::splat(if self.recover { recovery } else { 0.0 });
            let (least, step) = (V::splat(least), V::splat(step));
            match layout.bits() {
                Bits::B16 => {
                    for (block, ((mask, sign), scale)) in blocks {
                        let kept = V::expand_f16::<SPECIAL>(window(codes, 2 * used), mask);
                        used += mask.count_ones() as usize;
                        let pruned = V::negate(sign, V::mul(pruned, V::load(scale)));
                        sink.take(block, V::select(mask, kept, pruned));
                    }
                }
                Bits::B8 => {
                    for (block, ((mask, sign), _)) in blocks {
                        let code = V::expand_u8(window(codes, used), mask);
                        used += mask.count_ones() as usize;
                        let size = V::mul_add(code, step, V::select(mask, least, pruned));
                        sink.take(block, V::negate(sign, size));
                    }
                }
                Bits::B4 => {
                    for (block, ((mask, sign), _)) in blocks {
                        let code = V::expand_nibbles(window(codes, used / 2), used % 2 == 1, mask);
                        used += mask.count_ones() as usize;
                        let size = V::mul_add(code, step, V::select(mask, least, pruned));
                        sink.take(block, V::negate(sign, size));
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn too_many_marks_are_dropped_from_the_end() {
        let mut mask = [0b1011, 0x80, 0x01, 0xff];
        super::truncate(&mut mask, 4);
        assert_eq!(mask, [0b1011, 0x80, 0, 0]);
    }
}
