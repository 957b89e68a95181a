//! Which row formats there are, and what sets each apart; all else of a row is as format 1 has it.

use super::stored_bits::Bits;
use super::v2::codebook::CODEBOOK;

/// Channels that share a scale and a minimum in 4-bit value rows of format 1, and what their number is a multiple of in
/// any.
pub(crate) const VALUE_GROUP: usize = 32;

/// A row format: the attribute `row_format`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RowFormat {
    /// Linear codes; 4-bit values in groups of 32 channels.
    V1,
    /// Companded 4-bit keys; quantised values rotated, with one scale and minimum a row.
    V2,
    /// Keys in a calibrated basis, in planes of 8, 4 and 2 bits; values of format 2.
    V3,
}

impl RowFormat {
    /// From an attribute's integer.
    pub fn new(number: i64) -> Option<Self> {
        match number {
            1 => Some(Self::V1),
            2 => Some(Self::V2),
            3 => Some(Self::V3),
            _ => None,
        }
    }

    /// What the codes of kept key channels stand for, in 255ths of the range of a row; `None` where they are linear.
    pub(crate) fn key_codebook(self, bits: Bits) -> Option<&'static [u8; 16]> {
        match (self, bits) {
            (Self::V2, Bits::B4) => Some(&CODEBOOK),
            _ => None,
        }
    }

    /// Whether value channels are stored rotated.
    pub(crate) fn rotates_values(self, bits: Bits) -> bool {
        self != Self::V1 && bits != Bits::B16
    }

    /// Value channels that share a scale and a minimum.
    pub(crate) fn value_group(self, bits: Bits, head_dim: usize) -> usize {
        match (self, bits) {
            (Self::V1, Bits::B4) => VALUE_GROUP,
            _ => head_dim,
        }
    }
}
