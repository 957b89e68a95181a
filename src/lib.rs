//! ONNX Runtime custom operators that store a LLaMA model's KV cache pruned by SparK (arXiv 2508.15212, AAAI 2026).
//!
//! - [`spec`]: the operators' schema.
//! - [`mod@format`]: the bytes of a cache row.
//! - [`method`]: which channels of a key are kept, and how much the others weighed.
//! - [`call`]: what one call of an operator asks for: sizes, lengths and settings, validated.
//! - [`cpu`]: the kernels, plain Rust.
//! - [`gpu`]: the kernels on a GPU, from `ops/`.
//! - [`operators`]: `SparkPrune` and `SparkAttention` as ONNX Runtime sees them; `docs/operators.md` is their contract.
//! - [`plugin`]: an execution provider for ONNX Runtime 1.24 and later, on AMD and NVIDIA GPUs.
//! - [`onnx`]: models as files and graphs.
//! - [`runtime`]: ONNX Runtime found, and a language model driven in it.
//! - [`eval`]: what a compressed cache costs a model, measured.
//! - [`mod@rewrite`]: exported models turned into ones with the operators; `docs/rewriting.md` says which and how.
//!
//! Features, all on by default: `rewrite` has [`onnx`], [`runtime`] and [`mod@rewrite`], `eval` adds [`eval`], and
//! `cli` the program `spark-ort`. Without them the crate is the operators alone.

pub mod bits;
pub mod call;
pub mod cpu;
pub mod element;
mod entry_point;
#[cfg(feature = "eval")]
pub mod eval;
#[cfg(feature = "rewrite")]
pub mod files;
pub mod format;
pub mod gpu;
#[cfg(feature = "rewrite")]
pub mod json_path;
pub mod method;
#[cfg(feature = "rewrite")]
pub mod onnx;
pub mod operators;
mod ort_compat;
pub mod plugin;
#[cfg(feature = "rewrite")]
pub mod rewrite;
#[cfg(feature = "rewrite")]
pub mod runtime;
pub mod spec;

pub use entry_point::RegisterCustomOps;
pub use plugin::{CreateEpFactories, ReleaseEpFactory};
#[cfg(feature = "rewrite")]
pub use rewrite::rewrite;

/// The code in the documentation compiles.
#[cfg(all(doctest, feature = "rewrite"))]
mod documentation {
    #[doc = include_str!("../docs/rewriting.md")]
    struct Rewriting;
    #[doc = include_str!("../docs/hosts.md")]
    struct Hosts;
}
