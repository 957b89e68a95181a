//! Attention of a few queries, as in decoding: rows are read as they are stored, once for up to eight queries.
//!
//! `driver` is on top. `kernels` says what an instruction set may do faster; without such a kernel `cpu::isa::rows`
//! reads rows with its vectors. `chunk` and `prefetch` are below all of them.

pub(super) mod chunk;
pub(super) mod driver;
pub(super) mod kernels;
mod key_kernels;
pub(super) mod prefetch;
mod scores;
