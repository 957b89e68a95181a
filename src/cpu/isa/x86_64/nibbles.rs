//! Nibbles as bytes, by BMI2.

use std::arch::x86_64::_pdep_u64;

use crate::cpu::isa::vector::LANES;

/// The sixteen nibbles, but for a `skipped` low one, each in a byte, of the first half and of the second.
///
/// # Safety
/// The processor has BMI2.
#[inline(always)]
pub(super) unsafe fn nibbles_to_bytes(bytes: &[u8; LANES], skipped: bool) -> [u64; 2] {
    let nibbles = (u128::from_le_bytes(*bytes) >> (4 * u32::from(skipped))) as u64;
    // SAFETY: by this function's contract.
    unsafe { [_pdep_u64(nibbles, 0x0f0f_0f0f_0f0f_0f0f), _pdep_u64(nibbles >> 32, 0x0f0f_0f0f_0f0f_0f0f)] }
}
