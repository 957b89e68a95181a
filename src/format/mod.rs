//! Row formats: how one pruned key, and one value, lie in the cache.
//!
//! Rows are bytes; this module knows nothing of ONNX Runtime, of tensors or of how channels are chosen. Sizes are
//! validated once, when a layout is made; encoding and decoding then work on slices of exactly that size, and any bytes
//! decode to finite numbers.

mod limits;
mod row_format;
mod slot;
mod stored_bits;
mod tail;
pub(crate) mod v1;
pub(crate) mod v2;
pub(crate) mod v3;

pub use limits::{MAX_HEAD_DIM, MIN_HEAD_DIM};
pub use row_format::RowFormat;
pub use slot::write_dense_key;
pub use stored_bits::Bits;
pub use tail::{Slot, Tail, TailBuffer, TailLayout, TailSize};
pub use v1::key::{KeyRow, PrunedKey};
pub use v1::layout::{KeyLayout, LayoutError, ValueLayout};
pub use v3::Planes;
