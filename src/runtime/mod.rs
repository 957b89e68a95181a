//! Running a language model in ONNX Runtime: finds the runtime, and feeds a model and its cache by the names of its
//! inputs. Knows the cache as tensors passed from call to call, not their contents.
//!
//! - [`load`] finds and loads ONNX Runtime, once per process, with this crate's operators ready for it.
//! - [`Model`] is a session; a [`Sequence`] is the cache of one text that goes through it.
//! - [`Sampler`] chooses the next token, [`Tokenizer`] turns text into tokens and back.
//! - [`FolderSettings`] is what the files beside a model say of it.
//! - [`memory`] measures this process.

mod cancel;
mod error;
mod feeds;
mod filler;
mod interface;
mod load;
mod locate;
mod logits;
pub mod memory;
mod model;
mod sampling;
mod sequence;
mod settings;
mod tokenizer;

pub use cancel::Canceller;
pub use error::{Error, Tried};
pub use interface::{CacheLayer, CachePair, Element, Interface};
pub(crate) use load::is_loaded;
pub use load::{Runtime, load};
pub use model::{Model, Options};
pub use sampling::{Sampler, Sampling, greedy};
pub use sequence::Sequence;
pub use settings::FolderSettings;
pub use tokenizer::{TextStream, Tokenizer};
