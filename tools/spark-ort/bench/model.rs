//! `spark-ort bench model`: compares a model with its rewritten version.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde::Serialize;
use spark_ort::runtime::{Error, FolderSettings, Model, load, memory};

use super::machine::Machine;
use super::rounds::median;
use super::{positive, threads};
use crate::decode::{self, Settings};
use crate::interrupt::{self, Interrupt};
use crate::model_files::{ModelSource, model_files};
use crate::report::{Statistics, Table, bytes, publish};
use crate::terminal::note;
use crate::{room, whole_file};

/// Measure a model beside its rewritten self: speed of prompt and decoding, cache, peak memory
///
/// Both read the same random tokens, whatever they predict. One is in memory at a time; they take turns, and medians
/// are shown. Ctrl-C ends it and still shows the figures so far.
#[derive(clap::Args)]
#[command(after_long_help = "\
Examples:
  spark-ort bench model llama/ llama-spark/
  spark-ort bench model model.onnx small.onnx --contexts 4096 --new-tokens 64 --threads 2 --json figures.json")]
pub struct Args {
    /// The model: an .onnx file, an ONNX Runtime GenAI folder, or a folder with one .onnx file
    original: PathBuf,

    /// The same model, rewritten
    rewritten: PathBuf,

    /// Tokens of the prompts
    #[arg(long, value_name = "N,...", value_delimiter = ',', value_parser = positive, default_value = "512,2048")]
    contexts: Vec<usize>,

    /// Tokens to decode after each
    #[arg(long, value_name = "N", default_value = "32", value_parser = positive)]
    new_tokens: usize,

    /// How often each model is loaded and run
    #[arg(long, value_name = "N", default_value = "3", value_parser = positive)]
    rounds: usize,

    /// Threads that compute [default: one per physical core]
    #[arg(long, value_name = "N", value_parser = threads)]
    threads: Option<usize>,

    /// Let the cache grow by copies, as hosts do that know nothing of shared buffers
    #[arg(long)]
    no_shared_buffer: bool,

    /// Also write all figures as JSON to a file, or to stdout (-) in place of the table
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[derive(Serialize)]
struct Report {
    machine: Machine,
    models: [String; 2],
    threads: Option<usize>,
    contexts: Vec<Cell>,
    interrupted: bool,
}

/// Both models at one context, with one entry per round.
#[derive(Serialize)]
struct Cell {
    prompt_tokens: usize,
    original: Vec<Statistics>,
    rewritten: Vec<Statistics>,
}

pub fn run(args: &Args) -> Result<ExitCode> {
    let sources = [ModelSource::find(&args.original)?, ModelSource::find(&args.rewritten)?];
    if let Some(json) = &args.json {
        whole_file::check("--json", json, &model_files(sources.iter().map(|model| &model.file))?)?;
    }
    let machine = Machine::new(load()?);
    let interrupt = Interrupt::install()?;
    let settings = Settings { threads: args.threads, shared_buffer: !args.no_shared_buffer, interrupt };
    // In increasing order, memory kept by a session from earlier contexts is never more than it needs.
    let mut contexts = args.contexts.clone();
    contexts.sort_unstable();
    contexts.dedup();
    let (most, new) = (contexts.last().copied().unwrap_or(0), args.new_tokens);
    for source in &sources {
        let asked = format!("--contexts {most} and --new-tokens {new}");
        let limit = FolderSettings::beside(&source.file)?.context_length;
        if let Some(limit) = limit.filter(|limit| *limit < most + new) {
            bail!("{asked} need {} tokens, the context of {} is {limit}", most + new, source.file.display());
        }
        room::check_cache(&asked, &source.interface, most + new)?;
    }
    let mut cells: Vec<Cell> = Vec::new();
    for &prompt_tokens in &contexts {
        cells.push(Cell { prompt_tokens, original: Vec::new(), rewritten: Vec::new() });
    }
    let interrupted = measure(args, &sources, &settings, &mut cells)?;
    if interrupted && cells.iter().all(|cell| cell.original.is_empty()) {
        return Ok(interrupt::nothing_measured());
    }
    let models = sources.map(|source| source.file.display().to_string());
    let report = Report { machine, models, threads: args.threads, contexts: cells, interrupted };
    publish(args.json.as_deref(), &report, || report.lines())?;
    Ok(interrupt::status(interrupted))
}

/// Runs all rounds; returns whether Ctrl-C ended them.
fn measure(args: &Args, sources: &[ModelSource; 2], settings: &Settings, cells: &mut [Cell]) -> Result<bool> {
    for round in 0..args.rounds {
        for (which, source) in sources.iter().enumerate() {
            note(&format!("round {} of {}: {}\n", round + 1, args.rounds, source.file.display()));
            let mut model = decode::open(source, settings)?;
            let Some(vocabulary) = vocabulary(&mut model)? else { return Ok(true) };
            for cell in &mut *cells {
                let statistics = once(&mut model, vocabulary, cell.prompt_tokens, args.new_tokens, settings);
                let statistics = statistics.with_context(|| source.file.display().to_string())?;
                if statistics.interrupted {
                    return Ok(true);
                }
                if which == 0 { &mut cell.original } else { &mut cell.rewritten }.push(statistics);
            }
        }
    }
    Ok(false)
}

/// None if Ctrl-C ended it. Also runs the model once, since the first call is slower than later ones.
fn vocabulary(model: &mut Model) -> Result<Option<usize>> {
    let mut sequence = model.start(None)?;
    match model.run(&mut sequence, &[0]) {
        Err(Error::Cancelled) => return Ok(None),
        outcome => outcome?,
    };
    match model.vocabulary() {
        Some(vocabulary) if vocabulary > 0 => Ok(Some(vocabulary)),
        _ => bail!("the model has no vocabulary"),
    }
}

/// Random tokens, the same for every model.
fn once(
    model: &mut Model,
    vocabulary: usize,
    prompt_tokens: usize,
    new_tokens: usize,
    settings: &Settings,
) -> Result<Statistics> {
    let mut random = StdRng::seed_from_u64(1);
    let mut token = || random.random_range(0..vocabulary as i64);
    let prompt: Vec<i64> = (0..prompt_tokens).map(|_| token()).collect();
    let mut left = new_tokens;
    let mut next = |_: &[f32]| {
        let more = left > 0;
        left = left.saturating_sub(1);
        Ok(more.then(&mut token))
    };
    memory::reset_peak();
    decode::extend(model, &prompt, new_tokens, settings, &mut next)
}

impl Report {
    fn lines(&self) -> String {
        let mut table = Table::new(&["original", "rewritten", ""]);
        for Cell { prompt_tokens, original, rewritten } in &self.contexts {
            // Interrupted rounds may have only one model.
            let pairs = original.len().min(rewritten.len());
            let both = [&original[..pairs], &rewritten[..pairs]];
            table.row(&format!("prompt of {prompt_tokens} tokens"), vec![]);
            let mut row = |name: &str, of: &dyn Fn(&Statistics) -> Option<f64>, format: &dyn Fn(f64) -> String| {
                let values = both.map(|rounds| rounds.iter().filter_map(of).collect::<Vec<_>>());
                let ratio = median(values[0].iter().zip(&values[1]).map(|(original, rewritten)| rewritten / original));
                let [a, b] = values.map(median);
                let cell = |value: f64, format: &dyn Fn(f64) -> String| match value.is_finite() {
                    true => format(value),
                    false => "-".into(),
                };
                let percent = |ratio: f64| format!("{:.1} %", 100.0 * ratio);
                table.row(&format!("  {name}"), vec![cell(a, format), cell(b, format), cell(ratio, &percent)]);
            };
            let size = |x: f64| bytes(x as u64);
            let rate = |x: f64| format!("{x:.1}");
            row("prompt, tokens/s", &Statistics::prompt_rate, &rate);
            row("decode, tokens/s", &Statistics::decode_rate, &rate);
            row("cache, bytes per token", &|s| Some(s.cache_bytes_per_token as f64), &|x| format!("{x}"));
            row("peak memory", &|s| s.peak_memory_bytes.map(|m| m as f64), &size);
        }
        let interrupted = if self.interrupted { "interrupted\n" } else { "" };
        format!("{interrupted}{}\n{}", self.machine.line(), table.lines())
    }
}
