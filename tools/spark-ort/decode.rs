//! Continues a prompt with a model, and measures the time.

use std::time::Instant;

use anyhow::Result;
use spark_ort::runtime::{Error, Model, Options, memory};

use crate::interrupt::Interrupt;
use crate::model_files::ModelSource;
use crate::progress::Progress;
use crate::report::Statistics;

/// How to run a model.
pub struct Settings {
    pub threads: Option<usize>,
    /// Past and present in one buffer if the model allows it.
    pub shared_buffer: bool,
    pub interrupt: Interrupt,
}

/// Loads a model.
pub fn open(source: &ModelSource, settings: &Settings) -> Result<Model> {
    let _progress = Progress::start(format!("loading {}", source.file.display()));
    let model = Model::open(&source.file, &source.interface, &Options { threads: settings.threads })?;
    settings.interrupt.watch(model.canceller());
    Ok(model)
}

/// Extends the prompt by the tokens that `next` chooses from logits, until it returns none. Returns early, without an
/// error, when interrupted. Only the model's calls are timed.
pub fn extend(
    model: &mut Model,
    prompt: &[i64],
    room: usize,
    settings: &Settings,
    next: &mut dyn FnMut(&[f32]) -> Result<Option<i64>>,
) -> Result<Statistics> {
    let mut sequence = model.start(settings.shared_buffer.then_some(prompt.len() + room))?;
    let mut statistics = Statistics { prompt_tokens: prompt.len(), ..Default::default() };
    let progress = Progress::start(format!("reading the prompt: {} tokens", prompt.len()));
    let start = Instant::now();
    let mut outcome = model.run(&mut sequence, prompt);
    statistics.prompt_seconds = start.elapsed().as_secs_f64();
    drop(progress);
    statistics.interrupted = loop {
        let logits = match outcome {
            Err(Error::Cancelled) => break true,
            outcome => outcome?,
        };
        let Some(token) = next(&logits)? else { break false };
        let start = Instant::now();
        outcome = model.run(&mut sequence, &[token]);
        if outcome.is_ok() {
            statistics.decoded_tokens += 1;
            statistics.decode_seconds += start.elapsed().as_secs_f64();
        }
    };
    statistics.cache_tokens = sequence.len();
    statistics.cache_bytes = sequence.cache_bytes();
    statistics.cache_bytes_allocated = sequence.allocated_bytes();
    statistics.cache_bytes_per_token = model.interface().bytes_per_token();
    statistics.shared_buffer = sequence.capacity().is_some();
    statistics.peak_memory_bytes = memory::peak();
    Ok(statistics)
}
