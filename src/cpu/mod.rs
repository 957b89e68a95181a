//! The kernels on the CPU.
//!
//! [`prune()`] and [`attention()`], compiled in `entry`, take views of a call's tensors and a [`Pool`] to spread work
//! over. `schedule` shares out queries and keys. `attend` gives each share to `reference`, the scalar oracle, or to an
//! instruction set of `isa`: few queries to `decode`, many to `prefill`.

mod attend;
mod attended;
mod attention;
mod cache;
mod covariance;
mod decode;
mod entry;
mod isa;
mod kv_source;
mod new_tokens;
mod pool;
mod prefill;
mod prune;
mod queries;
mod query_block;
mod reference;
mod schedule;
mod softmax;
mod tail;
mod tokens;

pub use attention::{Attention, TailRows};
pub use cache::grow;
pub use covariance::covariances;
pub use entry::{KernelElement, attention, prune};
pub use isa::{CPU_VARIABLE, InstructionSet};
pub use pool::{Pool, Serial};
pub use prune::{HeadRows, Prune, encode_key, recent_keys};
pub use softmax::SoftmaxState;
pub use tail::write_tail;
pub use tokens::{Basis, Rotation, Tokens};
