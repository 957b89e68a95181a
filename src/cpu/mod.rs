//! The kernels on the CPU.
//!
//! [`prune()`] and [`attention()`] take views of a call's tensors and a [`Pool`] to spread work over. They are plain scalar
//! Rust that follows the formulas: the truth that faster paths beside them are tested against.

mod attention;
mod cache;
mod pool;
mod prune;
mod softmax;
mod tokens;

pub use attention::{Attention, attention};
pub use cache::grow;
pub use pool::{Pool, Serial};
pub use prune::{HeadRows, Prune, prune};
pub use softmax::SoftmaxState;
pub use tokens::{Rotation, Tokens};
