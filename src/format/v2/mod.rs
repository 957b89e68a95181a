//! Row format 2: format 1 with companded 4-bit keys and rotated values. The page that describes it is `docs/format.md`.

pub(super) mod codebook;
pub(crate) mod rotation;
