//! Other methods of cache compression, for comparison.
//!
//! Most have no operator in ONNX Runtime. They are simulated: the original model runs, and between its calls the rows
//! of its cache are replaced by what the rival would have stored. Their bytes are counted, not saved, and their speed
//! is meaningless. As the rivals' authors recommend, the first and the last tokens stay unchanged; see [`SINKS`].
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

/// First tokens that every rival keeps unchanged (Xiao et al. 2024, attention sinks).
pub const SINKS: usize = 4;

/// Last queries of a prompt, which decide the important channels and tokens, as in SnapKV and ThinK.
pub const OBSERVED: usize = 32;
