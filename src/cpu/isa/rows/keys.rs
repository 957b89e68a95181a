//! Key rows, sixteen channels at a time.

use super::window::window_unchecked;
use crate::cpu::decode::kernels::KeyRows;
use crate::cpu::isa::vector::{LANES, Vector};
use crate::format::v1::layout::{Bits, KeyLayout, MAX_HEAD_DIM};

/// Bytes beyond the last code that vectors may reach.
const BEYOND: usize = 4 * LANES;

/// Most bytes that the fields of a row take.
const MOST_BYTES: usize = MAX_HEAD_DIM / 4 + 6 + 2 * MAX_HEAD_DIM;

/// Reads key rows.
pub(in crate::cpu) struct KeyReader<'a> {
    rows: KeyRows<'a>,
    /// Bytes that the fields take.
    used: usize,
}

/// Takes the channels of a key, block by block.
pub(in crate::cpu) trait Sink<V: Vector> {
    /// Takes the channels of block `n`. To be `inline(always)`.
    ///
    /// # Safety
    /// The head has a block `n`.
    unsafe fn take(&mut self, v: V, n: usize, x: V::Lanes);
}

/// Clears all but the first `kept` bits of `mask`: rows with more of them are read so.
pub(in crate::cpu) fn truncate(mask: &mut [u8], kept: usize) {
    let mut left = kept;
    for byte in mask {
        while byte.count_ones() as usize > left {
            *byte &= !(1 << (7 - byte.leading_zeros()));
        }
        left -= byte.count_ones() as usize;
    }
}

impl<'a> KeyReader<'a> {
    /// Reads `rows`.
    pub(in crate::cpu) fn new(rows: KeyRows<'a>) -> Self {
        Self { rows, used: rows.layout.codes_at() + rows.layout.bits().bytes(rows.layout.kept()) }
    }

    /// Layout of the rows.
    pub(in crate::cpu) fn layout(&self) -> &'a KeyLayout {
        self.rows.layout
    }

    /// Gives `sink` each block of channels of a key: as stored with 16 bits, `scale` being c, in units of c otherwise.
    /// `rows` begins with the row; what follows it may be read and is not looked at. Without `SPECIAL`, kept channels
    /// that are stored as infinity or NaN stay what they are.
    #[inline(always)]
    pub(in crate::cpu) fn read<V: Vector, const SPECIAL: bool>(
        &self,
        v: V,
        rows: &[u8],
        scale: &[[f32; LANES]],
        sink: &mut impl Sink<V>,
    ) {
        self.read_together::<V, _, SPECIAL, 1>(v, [rows], scale, std::array::from_mut(sink));
    }

    /// As [`Self::read`], of `R` rows at once.
    #[inline(always)]
    pub(in crate::cpu) fn read_together<V: Vector, S: Sink<V>, const SPECIAL: bool, const R: usize>(
        &self,
        v: V,
        rows: [&[u8]; R],
        scale: &[[f32; LANES]],
        sinks: &mut [S; R],
    ) {
        if rows.iter().all(|rows| self.is_usual(rows)) {
            // SAFETY: the rows are usual.
            unsafe { self.read_usual::<V, S, SPECIAL, R>(v, rows, scale, sinks) };
        } else {
            for (rows, sink) in rows.into_iter().zip(sinks) {
                self.read_copy(v, rows, scale, sink);
            }
        }
    }

    /// Whether vectors stay within the bytes given, and no more channels are marked than kept.
    #[inline(always)]
    fn is_usual(&self, rows: &[u8]) -> bool {
        let (words, rest) = rows[..self.rows.layout.mask_bytes()].as_chunks::<8>();
        let mut marked = 0;
        for word in words {
            marked += u64::from_le_bytes(*word).count_ones();
        }
        for byte in rest {
            marked += byte.count_ones();
        }
        rows.len() >= self.used + BEYOND && marked as usize <= self.rows.layout.kept()
    }

    /// Reads the last row, which ends with its memory, or one with too many channels marked.
    #[cold]
    #[inline(never)]
    fn read_copy<V: Vector>(&self, v: V, rows: &[u8], scale: &[[f32; LANES]], sink: &mut impl Sink<V>) {
        let mut copy = [0; MOST_BYTES + BEYOND];
        copy[..self.used].copy_from_slice(&rows[..self.used]);
        truncate(&mut copy[..self.rows.layout.mask_bytes()], self.rows.layout.kept());
        // SAFETY: the copy reaches beyond the fields as far as vectors do, and no more channels are marked than kept.
        unsafe { self.read_usual::<V, _, true, 1>(v, [&copy], scale, std::array::from_mut(sink)) };
    }

    /// Reads rows that [`Self::is_usual`].
    ///
    /// # Safety
    /// They are.
    #[inline(always)]
    unsafe fn read_usual<V: Vector, S: Sink<V>, const SPECIAL: bool, const R: usize>(
        &self,
        v: V,
        rows: [&[u8]; R],
        scale: &[[f32; LANES]],
        sinks: &mut [S; R],
    ) {
        let layout = self.rows.layout;
        let planes = layout.mask_bytes();
        let rows = rows.map(|rows| &rows[..self.used + BEYOND]);
        assert_eq!(scale.len() * LANES, layout.head_dim());
        let mut used = [0; R];
        // SAFETY: by this function's contract. Two planes of a bit for each channel of `scale` begin a row, and scalars
        // follow. No more codes are used than are kept, so that behind those of any block there are as many bytes as
        // BEYOND.
        unsafe {
            let mut pruned = [v.splat(0.0); R];
            let (mut least, mut step) = (pruned, pruned);
            for (n, row) in rows.iter().enumerate() {
                let scalar = |n: usize| v.splat_f16(*window_unchecked(row, layout.scalars_at() + 2 * n));
                if self.rows.recover {
                    pruned[n] = scalar(0);
                }
                if self.rows.in_units() {
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
                            v.negate(sign as u16, v.mul(pruned[n], v.load(first))),
                            v.negate((sign >> 16) as u16, v.mul(pruned[n], v.load(second))),
                        ];
                        let codes = window_unchecked(rows[n], layout.codes_at() + 2 * used[n]);
                        let [x, y] = v.expand_f16_pair::<SPECIAL>(codes, mask, others);
                        used[n] += mask.count_ones() as usize;
                        sinks[n].take(v, 2 * pair, x);
                        sinks[n].take(v, 2 * pair + 1, y);
                    }
                }
                if let [last] = rest {
                    for n in 0..R {
                        let word = |at: usize| u16::from_le_bytes(*window_unchecked(rows[n], at + 4 * pairs.len()));
                        let (mask, sign) = (word(0), word(planes));
                        let kept =
                            v.expand_f16::<SPECIAL>(window_unchecked(rows[n], layout.codes_at() + 2 * used[n]), mask);
                        let other = v.negate(sign, v.mul(pruned[n], v.load(last)));
                        sinks[n].take(v, 2 * pairs.len(), v.select(mask, kept, other));
                    }
                }
                return;
            }
            let codebook = layout.codebook();
            for block in 0..scale.len() {
                for n in 0..R {
                    let word = |at: usize| u16::from_le_bytes(*window_unchecked(rows[n], at + 2 * block));
                    let (mask, sign) = (word(0), word(planes));
                    let codes = layout.codes_at();
                    let code = if layout.bits() == Bits::B8 {
                        v.expand_u8(window_unchecked(rows[n], codes + used[n]), mask)
                    } else {
                        let (nibbles, skipped) = (window_unchecked(rows[n], codes + used[n] / 2), used[n] % 2 == 1);
                        match codebook {
                            Some(book) => v.expand_by_codebook(book, nibbles, skipped, mask),
                            None => v.expand_nibbles(nibbles, skipped, mask),
                        }
                    };
                    used[n] += mask.count_ones() as usize;
                    let magnitude = v.mul_add(code, step[n], v.select(mask, least[n], pruned[n]));
                    sinks[n].take(v, block, v.negate(sign, magnitude));
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
