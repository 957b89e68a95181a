//! Options of commands that rewrite a model for a measurement only.

use std::path::PathBuf;

use spark_ort::rewrite::{Calibration, Options};

use crate::threads;

/// How such a model is calibrated and run.
#[derive(clap::Args)]
pub struct Temporary {
    /// What settings are calibrated on, as of `rewrite`
    #[arg(long, value_name = "FILE|random|off", default_value = "auto")]
    pub calibrate: Calibration,

    /// Calibrate on at most so many tokens
    #[arg(long, value_name = "N", default_value_t = 4096)]
    pub calibration_tokens: usize,

    /// The tokenizer.json to use, or its folder [default: the one beside the original]
    #[arg(long, value_name = "FILE")]
    pub tokenizer: Option<PathBuf>,

    /// Threads that compute [default: one per physical core]
    #[arg(long, value_name = "N", value_parser = threads::count)]
    pub threads: Option<usize>,
}

impl Temporary {
    /// The files that are read.
    pub fn files(&self) -> impl Iterator<Item = PathBuf> {
        let text = match &self.calibrate {
            Calibration::File(path) => Some(path.clone()),
            _ => None,
        };
        text.into_iter().chain(self.tokenizer.clone())
    }

    /// Options of a rewrite, the others at their defaults.
    pub fn options(&self) -> Options {
        Options {
            calibrate: self.calibrate.clone(),
            calibration_tokens: self.calibration_tokens,
            tokenizer: self.tokenizer.clone(),
            threads: self.threads,
            ..Options::default()
        }
    }
}
