//! Bytes of a row as arrays.

/// The `N` bytes at `at`.
#[inline(always)]
pub(super) fn window<const N: usize>(bytes: &[u8], at: usize) -> &[u8; N] {
    bytes[at..at + N].first_chunk().expect("N bytes")
}

/// As [`window`] without the check: it, and the state that the compiler keeps in memory for its failure, would take
/// longer than the work on the bytes.
///
/// # Safety
/// There are `N` bytes at `at`.
#[inline(always)]
pub(super) unsafe fn window_unchecked<const N: usize>(bytes: &[u8], at: usize) -> &[u8; N] {
    debug_assert!(at + N <= bytes.len());
    // SAFETY: by this function's contract; arrays of bytes need no alignment.
    unsafe { &*bytes.as_ptr().add(at).cast() }
}
