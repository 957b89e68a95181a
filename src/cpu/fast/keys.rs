//! Key rows, sixteen channels at a time.

use super::window_unchecked;
use crate::cpu::vector::{LANES, Vector};
use crate::format::{Bits, KeyLayout, MAX_HEAD_DIM};

/// Bytes beyond the last code that vectors may reach.
const BEYOND: usize = 4 * LANES;

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
    /// The processor has the instructions of `V`, and the head has such a block.
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

    /// Layout of the rows.
    pub(super) fn layout(&self) -> &'a KeyLayout {
        self.layout
    }

    /// Whether [`Self::read`] gives channels in units of c.
    pub(super) fn in_units(&self) -> bool {
        self.layout.bits() != Bits::B16
    }

    /// Gives `sink` each block of channels of a key: as stored with 16 bits, `scale` being c, in units of c otherwise.
    /// `rows` begins with the row; what follows it may be read and is not looked at. Without `SPECIAL`, kept channels that
    /// are stored as infinity or NaN stay what they are.
    ///
    /// # Safety
    /// The processor has the instructions of `V`.
    #[inline(always)]
    pub(super) unsafe fn read<V: Vector, const SPECIAL: bool>(
        &self,
        rows: &[u8],
        scale: &[[f32; LANES]],
        sink: &mut impl Sink<V>,
    ) {
        // SAFETY: as this function.
        unsafe { self.read_together::<V, _, SPECIAL, 1>([rows], scale, std::array::from_mut(sink)) };
    }

    /// As [`Self::read`], of `R` rows at once.
    ///
    /// # Safety
    /// The processor has the instructions of `V`.
    #[inline(always)]
    pub(super) unsafe fn read_together<V: Vector, S: Sink<V>, const SPECIAL: bool, const R: usize>(
        &self,
        rows: [&[u8]; R],
        scale: &[[f32; LANES]],
        sinks: &mut [S; R],
    ) {
        // SAFETY: as this function.
        unsafe {
            if rows.iter().all(|rows| self.is_usual(rows)) {
                self.read_usual::<V, S, SPECIAL, R>(rows, scale, sinks);
            } else {
                for (rows, sink) in rows.into_iter().zip(sinks) {
                    self.read_copy::<V>(rows, scale, sink);
                }
            }
        }
    }

    /// Whether vectors reach only what is there, and no more channels are marked than kept.
    #[inline(always)]
    fn is_usual(&self, rows: &[u8]) -> bool {
        let (words, rest) = rows[..self.layout.mask_bytes()].as_chunks::<8>();
        let mut marked = 0;
        for word in words {
            marked += u64::from_le_bytes(*word).count_ones();
        }
        for byte in rest {
            marked += byte.count_ones();
        }
        rows.len() >= self.used + BEYOND && marked as usize <= self.layout.kept()
    }

    /// Reads the last row, which ends with its memory, or one with too many channels marked.
    #[cold]
    #[inline(never)]
    unsafe fn read_copy<V: Vector>(&self, rows: &[u8], scale: &[[f32; LANES]], sink: &mut impl Sink<V>) {
        let mut copy = [0; MOST_BYTES + BEYOND];
        copy[..self.used].copy_from_slice(&rows[..self.used]);
        truncate(&mut copy[..self.layout.mask_bytes()], self.layout.kept());
        // SAFETY: as the caller.
        unsafe { self.read_usual::<V, _, true, 1>([&copy], scale, std::array::from_mut(sink)) };
    }

    /// Reads rows that [`Self::is_usual`].
    ///
    /// # Safety
    /// That, and the processor has the instructions of `V`.
    #[inline(always)]
    unsafe fn read_usual<V: Vector, S: Sink<V>, const SPECIAL: bool, const R: usize>(
        &self,
        rows: [&[u8]; R],
        scale: &[[f32; LANES]],
        sinks: &mut [S; R],
    ) {
        let layout = self.layout;
        let planes = layout.mask_bytes();
        let rows = rows.map(|rows| &rows[..self.used + BEYOND]);
        assert_eq!(scale.len() * LANES, layout.head_dim());
        let mut used = [0; R];
        // SAFETY: as this function. Two planes of a bit for each channel of `scale` begin a row, and scalars follow. No more
        // codes are used than are kept, so that behind those of any block there are as many bytes as BEYOND.
        unsafe {
            let mut pruned = [V::splat(0.0); R];
            let (mut least, mut step) = (pruned, pruned);
            for (n, row) in rows.iter().enumerate() {
                let scalar = |n: usize| V::splat_f16(*window_unchecked(row, layout.scalars_at() + 2 * n));
                if self.recover {
                    pruned[n] = scalar(0);
                }
                if self.in_units() {
                    (least[n], step[n]) = (scalar(1), scalar(2));
                }
            }
            if layout.bits() == Bits::B16 {
                let (pairs, rest) = scale.as_chunks::<2>();
                for (pair, [first, second]) in pairs.iter().enumerate() {
                    for n in 0..R {
                        let word = |at: usize| u32::from_le_bytes(*window_unchecked(rows[n], at + 4 * pair));
                        let (mask, sign) = (word(0), word(planes));
                        let others = [
                            V::negate(sign as u16, V::mul(pruned[n], V::load(first))),
                            V::negate((sign >> 16) as u16, V::mul(pruned[n], V::load(second))),
                        ];
                        let codes = window_unchecked(rows[n], layout.codes_at() + 2 * used[n]);
                        let [x, y] = V::expand_halves::<SPECIAL>(codes, mask, others);
                        used[n] += mask.count_ones() as usize;
                        sinks[n].take(2 * pair, x);
                        sinks[n].take(2 * pair + 1, y);
                    }
                }
                if let [last] = rest {
                    for n in 0..R {
                        let word = |at: usize| u16::from_le_bytes(*window_unchecked(rows[n], at + 4 * pairs.len()));
                        let (mask, sign) = (word(0), word(planes));
                        let kept =
                            V::expand_f16::<SPECIAL>(window_unchecked(rows[n], layout.codes_at() + 2 * used[n]), mask);
                        let other = V::negate(sign, V::mul(pruned[n], V::load(last)));
                        sinks[n].take(2 * pairs.len(), V::select(mask, kept, other));
                    }
                }
                return;
            }
            for block in 0..scale.len() {
                for n in 0..R {
                    let word = |at: usize| u16::from_le_bytes(*window_unchecked(rows[n], at + 2 * block));
                    let (mask, sign) = (word(0), word(planes));
                    let codes = layout.codes_at();
                    let code = if layout.bits() == Bits::B8 {
                        V::expand_u8(window_unchecked(rows[n], codes + used[n]), mask)
                    } else {
                        V::expand_nibbles(window_unchecked(rows[n], codes + used[n] / 2), used[n] % 2 == 1, mask)
                    };
                    used[n] += mask.count_ones() as usize;
                    let size = V::mul_add(code, step[n], V::select(mask, least[n], pruned[n]));
                    sinks[n].take(block, V::negate(sign, size));
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
