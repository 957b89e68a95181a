//! `spark-ort bench`: measures the speed of one layer's attention, or of a model.

mod append;
mod attention;
mod bandwidth;
mod basis;
pub mod cache;
mod decoding;
mod figures;
pub mod graph;
mod lab;
pub mod layer;
pub mod machine;
mod model;
mod needs;
mod prefill;
mod rounds;
pub mod shape;
mod tokens;

use std::process::ExitCode;

use anyhow::Result;
use clap::Subcommand;
use spark_ort::format::{MAX_HEAD_DIM, MIN_HEAD_DIM};

use crate::counts::{MOST, at_most};

/// Measure speed and memory: of one attention layer beside ONNX Runtime's own, or of two models
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    Attention(attention::Args),
    Model(model::Args),
}

pub fn run(args: &Args) -> Result<ExitCode> {
    match &args.what {
        What::Attention(args) => attention::run(args),
        What::Model(args) => model::run(args),
    }
}

/// Parses a number of channels that rows may have.
fn head_dim(text: &str) -> Result<usize, String> {
    let found = text.parse().ok().filter(|d: &usize| d.is_multiple_of(8) && (MIN_HEAD_DIM..=MAX_HEAD_DIM).contains(d));
    found.ok_or_else(|| format!("must be a multiple of 8 from {MIN_HEAD_DIM} to {MAX_HEAD_DIM}"))
}

/// Parses a number of at least 1.
fn positive(text: &str) -> Result<usize, String> {
    at_least(1, text)
}

fn at_least(least: usize, text: &str) -> Result<usize, String> {
    match text.parse::<usize>() {
        Ok(count) if count >= least => at_most(MOST, text, "can be asked for"),
        _ => Err(format!("must be a number from {least} on")),
    }
}

/// At least one thread, and no more than make sense.
fn threads(text: &str) -> Result<usize, String> {
    crate::threads::count(text).and_then(|_| positive(text))
}
