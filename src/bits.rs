//! Little-endian bit strings: bit j is bit j % 8 of byte j / 8.

/// Bit `j` of `bits`.
pub fn bit(bits: &[u8], j: usize) -> bool {
    bits[j / 8] >> (j % 8) & 1 == 1
}

/// Sets bit `j` of `bits`.
pub fn set_bit(bits: &mut [u8], j: usize) {
    bits[j / 8] |= 1 << (j % 8);
}
