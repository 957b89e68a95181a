//! Kept channels put in their places, eight at a time: a byte of the mask says by which shuffle.

use std::arch::x86_64::*;

use crate::cpu::isa::vector::LANES;

/// For each byte of a mask, where eight words take their bytes from: those of kept channels, one after the other;
/// pruned ones, whose bytes have the highest bit, become zero.
#[repr(C, align(64))]
struct Places([[u8; 16]; 256]);

static PLACES: Places = {
    let mut places = [[0x80; 16]; 256];
    let mut mask = 0;
    while mask < 256 {
        let (mut channel, mut kept) = (0, 0);
        while channel < 8 {
            if mask >> channel & 1 == 1 {
                places[mask][2 * channel] = 2 * kept;
                places[mask][2 * channel + 1] = 2 * kept + 1;
                kept += 1;
            }
            channel += 1;
        }
        mask += 1;
    }
    Places(places)
};

/// Where eight words take their bytes from, for a shuffle.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn places(mask: u8) -> __m128i {
    // SAFETY: memory is read through a reference to an array of the size and alignment that the instruction takes.
    unsafe { _mm_load_si128(PLACES.0[usize::from(mask)].as_ptr().cast()) }
}

/// The first words in the places where `mask` has a bit, and 0 elsewhere.
///
/// # Safety
/// The processor has AVX2.
#[inline(always)]
pub(super) unsafe fn expand_eight_words(mask: u8, bytes: &[u8; LANES]) -> __m128i {
    // SAFETY: memory is read through a reference to an array of the size that the instruction takes; the processor has
    // the instructions by this function's contract.
    unsafe { _mm_shuffle_epi8(_mm_loadu_si128(bytes.as_ptr().cast()), places(mask)) }
}
