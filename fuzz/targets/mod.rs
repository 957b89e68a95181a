//! What is fuzzed: each target takes any bytes and panics if something is wrong. The driver on stable Rust (`make fuzz`)
//! and cargo-fuzz (`fuzz_targets`) run the same ones.

mod bytes;
mod calls;
mod difference;
mod files;
mod rows;

/// A target, by its name.
pub type Target = (&'static str, fn(&[u8]));

/// All of them.
pub const TARGETS: [Target; 7] = [
    ("model", files::model),
    ("config", files::config),
    ("settings", files::settings),
    ("tokenizer", files::tokenizer),
    ("rows", rows::rows),
    ("calls", calls::calls),
    ("difference", difference::difference),
];

/// The one that needs ONNX Runtime.
pub const NEEDS_RUNTIME: &str = "difference";

#[allow(unused_imports)]
pub use difference::WEIGHTS;
pub use difference::{COMPARED, FOREIGN};
