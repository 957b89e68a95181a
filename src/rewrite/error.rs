//! Why a model is not rewritten.

use std::path::PathBuf;

use crate::onnx::FileError;

/// A model, or a part of it, that cannot be rewritten.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{place}: expected {expected}, found {found}")]
#[non_exhaustive]
pub struct Refusal {
    /// The node, input or file.
    pub place: String,
    /// What could be rewritten.
    pub expected: String,
    /// What is there.
    pub found: String,
}

impl Refusal {
    /// States where, what was expected there and what was found.
    pub fn new(place: impl Into<String>, expected: impl Into<String>, found: impl Into<String>) -> Self {
        Self { place: place.into(), expected: expected.into(), found: found.into() }
    }
}

/// Why a rewrite did not happen.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RewriteError {
    /// The model cannot be rewritten.
    #[error("the model cannot be rewritten: {0}")]
    Refused(Refusal),
    /// A file cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// An option that cannot be honoured.
    #[error("{option}: {problem}")]
    Option {
        /// The field of [`Options`](super::Options).
        option: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// The output path is occupied.
    #[error("{0} {1}")]
    Output(PathBuf, String),
    /// Calibration was asked for and is not possible.
    #[error("calibration failed: {0}")]
    Calibration(String),
    /// ONNX Runtime runs the original but not the rewritten model.
    #[error(
        "the rewritten model does not run, although the original does, and is not written: {0}\n\
         This is a fault of the rewriter; please report it with the model's graph."
    )]
    Trial(String),
    /// The caller's [`Progress`](super::Progress) cancelled.
    #[error("cancelled, nothing was written")]
    Cancelled,
}

// Not by `#[from]`: the message holds the whole refusal, which would then appear again as its cause.
impl From<Refusal> for RewriteError {
    fn from(refusal: Refusal) -> Self {
        RewriteError::Refused(refusal)
    }
}

impl RewriteError {
    /// Whether the model could be rewritten without calibration. A failure of the operators themselves would happen in
    /// any call.
    pub fn is_only_calibration(&self) -> bool {
        matches!(self, RewriteError::Calibration(problem)
            if !problem.contains("SparkAttention") && !problem.contains("SparkPrune"))
    }

    pub(super) fn option(option: &'static str, problem: impl Into<String>) -> Self {
        RewriteError::Option { option, problem: problem.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_operators_refuse_is_no_matter_of_calibration() {
        let of = |problem: &str| RewriteError::Calibration(problem.into()).is_only_calibration();
        assert!(of("input 'token_type_ids' is not known"));
        // The model as it is written would fail alike.
        assert!(!of("Non-zero status code while running SparkAttention node: query has 3 heads"));
    }
}
