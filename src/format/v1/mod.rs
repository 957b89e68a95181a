//! Row format 1: how one pruned key, and one value, lie in the cache. The page that describes it is `docs/format.md`.

pub(crate) mod dense;
pub(crate) mod key;
pub(crate) mod layout;
mod packed;
mod value;
