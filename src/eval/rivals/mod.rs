//! Other ways to make a cache smaller, to compare with.
//!
//! Most have no operator in ONNX Runtime. They are simulated: the original model runs, and between its calls the rows
//! of its cache are replaced by what the rival would have kept of them. Their bytes are counted, not saved, and their
//! speed says nothing. As the rivals' authors advise, the first tokens and the last ones stay as they are; see
//! [`SINKS`].
//!
//! - [`Rival`]: which one, as the command line spells it.
//! - `statistics`: what rivals need to know of a prompt's queries; `probe` makes the model say them.
//! - `transform`: what is lost of a row; `evict`: rows that are dropped.
//! - `native`: ONNX Runtime's own quantised caches, which run as they are.

mod evict;
mod name;
mod native;
mod probe;
mod quantise;
mod simulate;
mod statistics;
mod transform;

pub use evict::Rotary;
pub use name::{Method, Rival};
pub use native::{Scales, quantised_model};
pub use probe::{Probe, Prompt, probe_model};
pub use simulate::simulate;
pub use statistics::PromptStatistics;

/// First tokens that every rival keeps as they are (Xiao et al. 2024, attention sinks).
pub const SINKS: usize = 4;

/// Last queries of a prompt that say which channels and tokens matter, as SnapKV and ThinK take them.
pub const OBSERVED: usize = 32;
