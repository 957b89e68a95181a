//! Row format 3: keys in a basis of the model's own, each direction with the bits that it deserves. The page that
//! describes it is `docs/format.md`.

mod codes;
pub(crate) mod planes;

pub(crate) use codes::{LEVELS_2, LEVELS_4, OFFSET, RANGES};
pub use planes::Planes;
