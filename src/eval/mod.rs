//! Measures how much a compressed cache costs a language model.
//!
//! A model reads a prompt and then the tokens that actually follow it, one by one (teacher forcing). Its predictions
//! are compared with those of the original model, which has the full cache.
//!
//! - [`Passage`]: a prompt and the tokens that follow it in a text.
//! - [`Feeding`]: how a model gets them: chunks of the prompt, and the kind of cache.
//! - [`LogitStore`]: the original's predictions, on disk.
//! - [`Task`]: generated prompts whose answers lie within them.
//! - [`Question`]: tasks in the form of LongBench, answered in free text and scored by a [`Metric`].
//! - [`rivals`]: other ways to make a cache smaller.
//! - [`tune`]: which layers bear a smaller cache.
//! - [`TokenScore`] and [`Summary`]: how predictions differ, token by token and as estimates with confidence intervals.

mod feeding;
mod logits;
mod longbench;
mod metrics;
mod passage;
pub mod rivals;
mod score;
mod statistics;
mod tasks;
pub mod tune;

pub use feeding::{Feeding, Seen, Timing};
pub use logits::LogitStore;
pub use longbench::{Question, QuestionError, Wording};
pub use metrics::Metric;
pub use passage::{Passage, passages};
pub use score::{Summary, TokenScore, divergence, divergence_change};
pub use statistics::{Estimate, mean_of};
pub use tasks::Task;
