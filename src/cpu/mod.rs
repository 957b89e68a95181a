//! The kernels on the CPU.
//!
//! [`prune()`] and [`attention()`] take views of a call's tensors and a [`Pool`] to spread work over. `schedule` shares out
//! queries and keys, whatever path then attends; `scalar` is the path in plain Rust.

mod attention;
mod cache;
mod pool;
mod prune;
mod scalar;
mod schedule;
mod softmax;
mod tokens;

pub use attention::{Attention, attention};
pub use cache::grow;
pub use pool::{Pool, Serial};
pub use prune::{HeadRows, Prune, prune, recent_keys};
pub use softmax::SoftmaxState;
pub use tokens::{Rotation, Tokens};
