//! Software prefetch, which every x86-64 processor has.

use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};

/// Asks memory for the cache line at `address`, which need not be readable.
#[inline(always)]
pub(super) fn prefetch(address: *const u8) {
    // SAFETY: asking reads nothing and faults on no address.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) };
}
