//! How many bits a stored number has.

/// Bits of a stored number: 16 (float16), or 8 or 4 (quantised).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bits {
    /// float16
    B16,
    /// uint8
    B8,
    /// two to a byte, low nibble first
    B4,
}

impl Bits {
    /// From an attribute's integer.
    pub fn new(bits: i64) -> Option<Self> {
        match bits {
            16 => Some(Self::B16),
            8 => Some(Self::B8),
            4 => Some(Self::B4),
            _ => None,
        }
    }

    /// As an attribute has it.
    pub(crate) fn width(self) -> u32 {
        match self {
            Self::B16 => 16,
            Self::B8 => 8,
            Self::B4 => 4,
        }
    }

    /// Whether numbers are codes, which stand for others by scale and minimum.
    #[inline(always)]
    pub(crate) fn is_quantised(self) -> bool {
        self != Self::B16
    }

    /// Greatest code of a quantised number, 2^bits - 1; `None` for float16.
    pub(crate) fn greatest_code(self) -> Option<f32> {
        match self {
            Self::B16 => None,
            Self::B8 => Some(255.0),
            Self::B4 => Some(15.0),
        }
    }

    /// Bytes of `n` numbers.
    pub(crate) fn bytes(self, n: usize) -> usize {
        match self {
            Self::B16 => 2 * n,
            Self::B8 => n,
            Self::B4 => n.div_ceil(2),
        }
    }
}
