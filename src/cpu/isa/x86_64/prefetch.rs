//! Software prefetch, which every x86-64 processor has.

use std::arch::x86_64::{_MM_HINT_T0, _MM_HINT_T1, _mm_prefetch};

/// Asks memory for the cache line at `address`, which need not be readable, into the nearest cache; if `FAR`, only
/// into the one after it.
#[inline(always)]
pub(super) fn prefetch<const FAR: bool>(address: *const u8) {
    let address = address.cast();
    // SAFETY: asking reads nothing and faults on no address.
    unsafe { if FAR { _mm_prefetch::<_MM_HINT_T1>(address) } else { _mm_prefetch::<_MM_HINT_T0>(address) } };
}
