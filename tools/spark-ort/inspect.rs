//! `spark-ort inspect`: describes a model's cache.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;

use crate::model_files::model_file;
use crate::terminal::{pass_on, show};

/// Say what a model's attention and cache are like, rewritten or not
///
/// A model that can be neither run nor rewritten is an error, which says why.
#[derive(clap::Args)]
#[command(after_long_help = "\
Examples:
  spark-ort inspect model.onnx
  spark-ort inspect llama-spark/ --json")]
pub struct Args {
    /// An .onnx file, an ONNX Runtime GenAI folder, or a folder with one .onnx file
    model: PathBuf,

    /// Write JSON
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args) -> Result<ExitCode> {
    let inspection = spark_ort::rewrite::inspect(&model_file(&args.model)?)?;
    match args.json {
        true => pass_on(&format!("{}\n", serde_json::to_string_pretty(&inspection)?))?,
        false => show(&inspection.to_string())?,
    }
    Ok(ExitCode::SUCCESS)
}
