//! A trial of what was written: one token goes through the model, where an ONNX Runtime is at hand.

use std::path::Path;

use super::calibrate::chain;
use super::error::RewriteError;
use super::inspect::Inspection;
use crate::runtime::{Error, Model, Options, load};

/// What came of a trial.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trial {
    /// The model runs.
    Runs,
    /// There is no ONNX Runtime.
    NotTried,
    /// ONNX Runtime runs neither this model nor the original here, and why not this one.
    NeitherRuns(String),
}

/// Runs one token through the model at `path`, and where that fails, through the original.
///
/// # Errors
/// The original runs and this model does not.
pub fn trial(path: &Path, model: &Inspection, original: &Path, threads: Option<usize>) -> Result<Trial, RewriteError> {
    if load().is_err() {
        return Ok(Trial::NotTried);
    }
    let Err(error) = one_token(path, model, threads) else { return Ok(Trial::Runs) };
    let before = super::inspect(original)?;
    match one_token(original, &before, threads) {
        Ok(()) => Err(RewriteError::Trial(chain(&error))),
        Err(_) => Ok(Trial::NeitherRuns(chain(&error))),
    }
}

fn one_token(path: &Path, model: &Inspection, threads: Option<usize>) -> Result<(), Error> {
    let mut session = Model::open_filling(path, &model.interface, &Options { threads })?;
    let mut sequence = session.start(None)?;
    // None of its other outputs is asked for: the caches show that all layers ran.
    session.run_with_outputs(&mut sequence, &[0], &[]).map(drop)
}
