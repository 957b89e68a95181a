//! Head sizes that rows hold.

/// Least head size.
pub const MIN_HEAD_DIM: usize = 32;
/// Greatest head size; stack buffers of this many channels hold any row.
pub const MAX_HEAD_DIM: usize = 256;
