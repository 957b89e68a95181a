//! The kernels on the CPU.
//!
//! [`prune()`] and [`attention()`] take views of a call's tensors and a [`Pool`] to spread work over. `schedule` shares out
//! queries and keys, whatever [`Path`] then attends: `scalar` in plain Rust, or `fast` with the `vector`s of a processor.

mod attention;
mod cache;
mod fast;
mod new_tokens;
mod path;
mod pool;
mod prune;
mod scalar;
mod schedule;
mod softmax;
mod tail;
mod tokens;
mod vector;

pub use attention::{Attention, attention};
pub use cache::grow;
pub use path::{PATH_VARIABLE, Path};
pub use pool::{Pool, Serial};
pub use prune::{HeadRows, Prune, prune, recent_keys};
pub use softmax::SoftmaxState;
pub use tail::{TailRows, write_tail};
pub use tokens::{Rotation, Tokens};
