//! Continues a prompt with one model.

use std::path::PathBuf;

use anyhow::{Context, Result};
use serde::Serialize;
use spark_ort::runtime::{Sampler, Sampling, load};

use crate::decode::{self, Settings};
use crate::model_files::ModelSource;
use crate::output::Output;
use crate::prompt::Spelling;
use crate::report::Statistics;

/// The checked arguments of a command line.
pub struct Task {
    pub model: ModelSource,
    pub spelling: Spelling,
    pub prompt: Vec<i64>,
    pub max_new_tokens: usize,
    pub sampling: Sampling,
    /// Tokens that end the text.
    pub ends: Vec<i64>,
    pub settings: Settings,
    /// Whether the text goes to stdout.
    pub text_shown: bool,
}

/// The continuation of a prompt by a model.
#[derive(Serialize)]
pub struct Generated {
    #[serde(serialize_with = "spark_ort::json_path::path")]
    pub model: PathBuf,
    pub onnxruntime: String,
    /// The new tokens, without the one that ended the text.
    pub tokens: Vec<i64>,
    /// The same as text, or as token ids if requested.
    pub text: String,
    /// "length", "end of text" or "interrupted".
    pub finished_by: &'static str,
    pub statistics: Statistics,
}

/// Continues the prompt of a task with a model. `seen` gets the logits before each choice and the chosen token,
/// including the one that ends the text.
pub fn generate(
    task: &Task,
    source: &ModelSource,
    seen: &mut dyn FnMut(&[f32], i64) -> Result<()>,
) -> Result<Generated> {
    let mut model = decode::open(source, &task.settings)?;
    let mut output = Output::new(task.spelling.speller(), task.text_shown);
    let mut sampler = Sampler::new(task.sampling.clone());
    let mut tokens = Vec::new();
    let mut ended = false;
    let mut next = |logits: &[f32]| {
        let token = sampler.choose(logits).context("the model's logits are not finite")? as i64;
        seen(logits, token)?;
        ended = task.ends.contains(&token);
        if ended {
            return Ok(None);
        }
        tokens.push(token);
        output.push(token)?;
        Ok((tokens.len() < task.max_new_tokens).then_some(token))
    };
    let statistics = decode::extend(&mut model, &task.prompt, task.max_new_tokens, &task.settings, &mut next)?;
    let finished_by = match (statistics.interrupted, ended) {
        (true, _) => "interrupted",
        (_, true) => "end of text",
        _ => "length",
    };
    let (text, onnxruntime) = (output.finish()?, load()?.version().to_string());
    Ok(Generated { model: source.file.clone(), onnxruntime, tokens, text, finished_by, statistics })
}
