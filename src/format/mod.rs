//! Row format 1: how one pruned key, and one value, lie in the cache. The page that describes it is `docs/format.md`.
//!
//! Rows are bytes; this module knows nothing of ONNX Runtime, of tensors or of how channels are chosen. Sizes are
//! validated once, when a layout is made; encoding and decoding then work on slices of exactly that size, and any bytes
//! decode to finite numbers.

mod dense;
mod key;
mod layout;
mod packed;
mod tail;
mod value;

pub use dense::write_dense_key;
pub use key::{KeyRow, PrunedKey};
pub use layout::{Bits, KeyLayout, LayoutError, MAX_HEAD_DIM, MIN_HEAD_DIM, ValueLayout};
pub use tail::{Slot, Tail, TailBuffer, TailLayout};
