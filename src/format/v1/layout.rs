//! Sizes and offsets of rows.

use thiserror::Error;

pub use crate::format::limits::{MAX_HEAD_DIM, MIN_HEAD_DIM};
use crate::format::row_format::{RowFormat, VALUE_GROUP};
pub use crate::format::stored_bits::Bits;
use crate::format::v3::Planes;

/// Why a layout cannot be.
#[derive(Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum LayoutError {
    /// The head size is not one the format holds.
    #[error("head size {0} is not a multiple of 8 from {MIN_HEAD_DIM} to {MAX_HEAD_DIM}")]
    HeadDim(usize),
    /// Too few or too many kept channels.
    #[error("kept_channels {kept} is not from 1 to the head size {head_dim}")]
    KeptChannels {
        /// kept channels asked for
        kept: usize,
        /// D
        head_dim: usize,
    },
    /// 4-bit values need whole groups.
    #[error("value_bits 4 needs a head size that is a multiple of {VALUE_GROUP}, not {0}")]
    ValueGroup(usize),
    /// Keys of format 3 have planes, and no others do.
    #[error("keys of row_format 3, and no others, are laid out in planes of directions")]
    Planes,
    /// The row size asked for is too small or not a multiple of 4.
    #[error("{given} row bytes given, but rows need {needed}, and a multiple of 4")]
    RowBytes {
        /// bytes asked for
        given: usize,
        /// bytes that the fields take, rounded up to a multiple of 4
        needed: usize,
    },
}

fn check_head_dim(head_dim: usize) -> Result<(), LayoutError> {
    match head_dim {
        MIN_HEAD_DIM..=MAX_HEAD_DIM if head_dim.is_multiple_of(8) => Ok(()),
        _ => Err(LayoutError::HeadDim(head_dim)),
    }
}

fn check_kept(kept: usize, head_dim: usize) -> Result<(), LayoutError> {
    check_head_dim(head_dim)?;
    match kept {
        0 => Err(LayoutError::KeptChannels { kept, head_dim }),
        _ if kept > head_dim => Err(LayoutError::KeptChannels { kept, head_dim }),
        _ => Ok(()),
    }
}

/// `used` bytes padded to a multiple of 4, or to `given` when that is not 0.
fn row_bytes(used: usize, given: usize) -> Result<usize, LayoutError> {
    let needed = used.next_multiple_of(4);
    match given {
        0 => Ok(needed),
        _ if given < needed || !given.is_multiple_of(4) => Err(LayoutError::RowBytes { given, needed }),
        _ => Ok(given),
    }
}

/// Layout of key rows: `head_dim` channels of which `kept` are stored with `bits` bits, or, of format 3, directions in
/// planes of several bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyLayout {
    format: RowFormat,
    head_dim: usize,
    kept: usize,
    bits: Bits,
    planes: Option<Planes>,
    row_bytes: usize,
}

impl KeyLayout {
    /// A validated layout of format 1; `row_bytes` 0 means as small as possible.
    ///
    /// ```
    /// use spark_ort::format::{Bits, KeyLayout};
    ///
    /// // Half of 128 channels with 8 bits: mask and signs of 16 bytes each, three float16 and 64 codes.
    /// assert_eq!(KeyLayout::new(128, 64, Bits::B8, 0)?.row_bytes(), 16 + 16 + 6 + 64 + 2);
    /// assert!(KeyLayout::new(128, 129, Bits::B8, 0).is_err());
    /// # Ok::<(), spark_ort::format::LayoutError>(())
    /// ```
    ///
    /// # Errors
    /// Head size, kept channels or row bytes out of range.
    pub fn new(head_dim: usize, kept: usize, bits: Bits, row_bytes: usize) -> Result<Self, LayoutError> {
        Self::of(RowFormat::V1, head_dim, kept, bits, row_bytes)
    }

    /// As [`KeyLayout::new`], of `format`, 1 or 2.
    ///
    /// # Errors
    /// Head size, kept channels or row bytes out of range.
    pub fn of(
        format: RowFormat,
        head_dim: usize,
        kept: usize,
        bits: Bits,
        row_bytes: usize,
    ) -> Result<Self, LayoutError> {
        if format == RowFormat::V3 {
            return Err(LayoutError::Planes);
        }
        check_kept(kept, head_dim)?;
        let mut layout = Self { format, head_dim, kept, bits, planes: None, row_bytes: 0 };
        layout.row_bytes = self::row_bytes(layout.codes_at() + bits.bytes(kept), row_bytes)?;
        Ok(layout)
    }

    /// A validated layout of format 3; `row_bytes` 0 means as small as possible.
    ///
    /// # Errors
    /// Head size, kept directions or row bytes out of range.
    pub fn of_planes(head_dim: usize, planes: Planes, row_bytes: usize) -> Result<Self, LayoutError> {
        let kept = planes.kept();
        check_kept(kept, head_dim)?;
        let row_bytes = self::row_bytes(planes.bytes(), row_bytes)?;
        Ok(Self { format: RowFormat::V3, head_dim, kept, bits: Bits::B8, planes: Some(planes), row_bytes })
    }

    /// D
    pub fn head_dim(&self) -> usize {
        self.head_dim
    }
    /// T_k
    pub fn kept(&self) -> usize {
        self.kept
    }
    /// Bits of a kept channel; without meaning for planes.
    pub fn bits(&self) -> Bits {
        self.bits
    }
    /// The planes of a row of format 3. Other formats have none, and of all methods here those of planes alone read
    /// and write its rows.
    pub fn planes(&self) -> Option<&Planes> {
        self.planes.as_ref()
    }
    /// Bytes from one row to the next.
    pub fn row_bytes(&self) -> usize {
        self.row_bytes
    }
    /// What a code stands for in 255ths of the range of a row; `None` where codes are linear, or there are none.
    pub(crate) fn codebook(&self) -> Option<&'static [u8; 16]> {
        self.format.key_codebook(self.bits)
    }
    /// What the greatest code stands for; `None` for float16.
    pub(crate) fn greatest_code(&self) -> Option<f32> {
        match self.codebook() {
            Some(book) => Some(book[15].into()),
            None => self.bits.greatest_code(),
        }
    }
    /// Bytes of the keep mask, and of the sign plane that follows it.
    pub(crate) fn mask_bytes(&self) -> usize {
        self.head_dim / 8
    }
    /// Where the float16 `a` lies, and after it the reserved zero, or `m` and `step`.
    pub(crate) fn scalars_at(&self) -> usize {
        2 * self.mask_bytes()
    }
    /// Where the kept channels lie.
    pub(crate) fn codes_at(&self) -> usize {
        self.scalars_at() + if self.bits == Bits::B16 { 4 } else { 6 }
    }
}

/// Layout of value rows: `head_dim` channels stored with `bits` bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ValueLayout {
    format: RowFormat,
    head_dim: usize,
    bits: Bits,
    row_bytes: usize,
}

impl ValueLayout {
    /// A validated layout of format 1; `row_bytes` 0 means as small as possible.
    ///
    /// # Errors
    /// Head size or row bytes out of range.
    pub fn new(head_dim: usize, bits: Bits, row_bytes: usize) -> Result<Self, LayoutError> {
        Self::of(RowFormat::V1, head_dim, bits, row_bytes)
    }

    /// As [`ValueLayout::new`], of `format`.
    ///
    /// # Errors
    /// Head size or row bytes out of range.
    pub fn of(format: RowFormat, head_dim: usize, bits: Bits, row_bytes: usize) -> Result<Self, LayoutError> {
        check_head_dim(head_dim)?;
        if bits == Bits::B4 && !head_dim.is_multiple_of(VALUE_GROUP) {
            return Err(LayoutError::ValueGroup(head_dim));
        }
        let mut layout = Self { format, head_dim, bits, row_bytes: 0 };
        layout.row_bytes = self::row_bytes(layout.codes_at() + bits.bytes(head_dim), row_bytes)?;
        Ok(layout)
    }

    /// D
    pub fn head_dim(&self) -> usize {
        self.head_dim
    }
    /// Bits of a channel.
    pub fn bits(&self) -> Bits {
        self.bits
    }
    /// Bytes from one row to the next.
    pub fn row_bytes(&self) -> usize {
        self.row_bytes
    }
    /// Channels that share one scale and minimum.
    pub(crate) fn group(&self) -> usize {
        self.format.value_group(self.bits, self.head_dim)
    }
    /// Groups of channels; one where there are none.
    pub(crate) fn groups(&self) -> usize {
        self.head_dim / self.group()
    }
    /// Whether channels are stored rotated.
    pub(crate) fn is_rotated(&self) -> bool {
        self.format.rotates_values(self.bits)
    }
    /// Where the numbers lie, after the pairs of scale and minimum.
    pub(crate) fn codes_at(&self) -> usize {
        if self.bits == Bits::B16 { 0 } else { 4 * self.groups() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The table of docs/format.md.
    #[test]
    fn sizes_at_128() {
        for (kept, bits, key_bytes, value_bytes) in [
            (64, Bits::B16, 164, 256),
            (26, Bits::B16, 88, 256),
            (64, Bits::B8, 104, 132),
            (39, Bits::B4, 60, 80),
            (26, Bits::B4, 52, 80),
        ] {
            assert_eq!(KeyLayout::new(128, kept, bits, 0).unwrap().row_bytes(), key_bytes);
            assert_eq!(ValueLayout::new(128, bits, 0).unwrap().row_bytes(), value_bytes);
        }
    }

    #[test]
    fn what_cannot_be_is_refused() {
        for d in [0, 8, 24, 33, 260, 264, usize::MAX] {
            assert_eq!(KeyLayout::new(d, 1, Bits::B16, 0), Err(LayoutError::HeadDim(d)));
            assert_eq!(ValueLayout::new(d, Bits::B16, 0), Err(LayoutError::HeadDim(d)));
        }
        assert_eq!(KeyLayout::new(64, 0, Bits::B8, 0), Err(LayoutError::KeptChannels { kept: 0, head_dim: 64 }));
        assert_eq!(KeyLayout::new(64, 65, Bits::B8, 0), Err(LayoutError::KeptChannels { kept: 65, head_dim: 64 }));
        assert_eq!(ValueLayout::new(40, Bits::B4, 0), Err(LayoutError::ValueGroup(40)));
        assert_eq!(KeyLayout::new(128, 64, Bits::B8, 100), Err(LayoutError::RowBytes { given: 100, needed: 104 }));
        assert_eq!(KeyLayout::new(128, 64, Bits::B8, 106), Err(LayoutError::RowBytes { given: 106, needed: 104 }));
        assert_eq!(KeyLayout::new(128, 64, Bits::B8, 256).unwrap().row_bytes(), 256);
    }
}
