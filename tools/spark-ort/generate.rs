//! `spark-ort generate`: continues a prompt.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Result, bail};
use serde::Serialize;
use spark_ort::runtime::{FolderSettings, Sampling};

use crate::compare;
use crate::continuation::{Task, generate};
use crate::counts::tokens;
use crate::decode::Settings;
use crate::interrupt::{self, Interrupt};
use crate::model_files::{ModelSource, model_files};
use crate::prompt::{self, Spelling};
use crate::report::write_json;
use crate::terminal::note;
use crate::{room, threads, whole_file};

/// Continue a prompt, and say how fast and how large the cache was
///
/// Works with rewritten models and with others alike. The text goes to stdout as it comes, everything else to stderr.
/// Ctrl-C ends it and still shows the figures.
#[derive(clap::Args)]
#[command(after_long_help = "\
Examples:
  The likeliest continuation of a text:
    spark-ort generate model/ --prompt 'The KV cache of a language model'

  Sampled, from a file, 500 tokens at most:
    spark-ort generate model/ --prompt-file story.txt --temperature 0.8 --top-p 0.95 -n 500

  What pruning changes: the original's text, both models' figures, how often they agree:
    spark-ort generate pruned/ --compare model/ --prompt-file article.txt -n 64")]
pub struct Args {
    /// An .onnx file, an ONNX Runtime GenAI folder, or a folder with one .onnx file
    model: PathBuf,

    #[command(flatten)]
    prompt: PromptArgs,

    /// Stop after this many tokens, if the model does not end the text before
    #[arg(long, short = 'n', value_name = "N", default_value_t = 128, value_parser = tokens)]
    max_new_tokens: usize,

    /// 0 takes the likeliest token always; 1 samples from the model's probabilities, less is tamer, more is wilder
    #[arg(long, default_value_t = 0.0, value_parser = temperature)]
    temperature: f32,

    /// Sample from the K likeliest tokens only
    #[arg(long, value_name = "K")]
    top_k: Option<usize>,

    /// Sample from the fewest likeliest tokens only that have this share of the probability
    #[arg(long, value_name = "SHARE", default_value_t = 1.0, value_parser = share)]
    top_p: f32,

    /// The same seed samples the same tokens
    #[arg(long, default_value_t = 0)]
    seed: u64,

    /// Threads that compute [default: one per physical core]
    #[arg(long, value_name = "N", value_parser = threads::count)]
    threads: Option<usize>,

    /// The tokenizer.json to use, or its folder [default: the one beside the model]
    #[arg(long, value_name = "FILE", conflicts_with = "ids")]
    tokenizer: Option<PathBuf>,

    /// Read the prompt as token ids with spaces between them, and write ids; needs no tokenizer
    #[arg(long)]
    ids: bool,

    /// Let the cache grow by copies, as hosts do that know nothing of shared buffers
    #[arg(long)]
    no_shared_buffer: bool,

    /// Go on after the token that ends a text
    #[arg(long)]
    ignore_eos: bool,

    /// Also write what is shown as JSON to a file, or to stdout (-) in place of the text
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,

    /// Compare MODEL with this one, which generates the text: MODEL reads the same tokens, and their predictions are
    /// compared token by token. The first one is shown apart: it follows the prompt, within which attention is exact
    #[arg(long, value_name = "ORIGINAL")]
    compare: Option<PathBuf>,
}

#[derive(clap::Args)]
#[group(required = true, multiple = false)]
struct PromptArgs {
    /// The text to continue
    #[arg(long, value_name = "TEXT")]
    prompt: Option<String>,

    /// A file with the text to continue, - for stdin; a newline at its end is left out
    #[arg(long, value_name = "FILE")]
    prompt_file: Option<PathBuf>,
}

fn temperature(text: &str) -> Result<f32, String> {
    let value = text.parse::<f32>().ok().filter(|t| t.is_finite() && *t >= 0.0);
    value.ok_or_else(|| "must be a number from 0 on".into())
}

fn share(text: &str) -> Result<f32, String> {
    let value = text.parse::<f32>().ok().filter(|p| *p > 0.0 && *p <= 1.0);
    value.ok_or_else(|| "must be above 0 and at most 1".into())
}

pub fn run(args: &Args) -> Result<ExitCode> {
    let model = ModelSource::find(&args.model)?;
    let original = args.compare.as_deref().map(ModelSource::find).transpose()?;
    if let Some(json) = &args.json {
        let mut read = model_files([&model].into_iter().chain(&original).map(|model| &model.file))?;
        read.extend([&args.tokenizer, &args.prompt.prompt_file].into_iter().flatten().cloned());
        whole_file::check("--json", json, &read)?;
    }
    let task = task(args, model, original.as_ref())?;
    let interrupted = match &original {
        Some(original) => {
            let report = compare::run(&task, original)?;
            note(&report.lines());
            write(args, &report)?;
            report.interrupted()
        }
        None => {
            let report = generate(&task, &task.model, &mut |_, _| Ok(()))?;
            note(&report.statistics.lines());
            write(args, &report)?;
            report.statistics.interrupted
        }
    };
    Ok(interrupt::status(interrupted))
}

fn write(args: &Args, report: &impl Serialize) -> Result<()> {
    args.json.as_deref().map_or(Ok(()), |path| write_json(path, report))
}

fn task(args: &Args, model: ModelSource, original: Option<&ModelSource>) -> Result<Task> {
    if args.max_new_tokens == 0 {
        bail!("--max-new-tokens is 0: there is nothing to generate");
    }
    if args.threads == Some(0) {
        bail!("--threads is 0: at least one is needed");
    }
    if args.temperature == 0.0 && (args.top_k.is_some() || args.top_p < 1.0) {
        bail!("--top-k and --top-p are for sampling: give a --temperature above 0 too");
    }
    if args.top_k == Some(0) {
        bail!("--top-k is 0: at least one token is needed to choose from");
    }
    let models: Vec<&Path> = std::iter::once(&model).chain(original).map(|source| source.file.as_path()).collect();
    let spelling = match args.ids {
        true => Spelling::Ids,
        false => Spelling::text(args.tokenizer.as_deref(), &models)?,
    };
    let prompt = spelling.encode(&prompt::read(args.prompt.prompt.as_deref(), args.prompt.prompt_file.as_deref())?)?;
    let folders = models.iter().map(|model| FolderSettings::beside(model)).collect::<Result<Vec<_>, _>>()?;
    let mut max_new_tokens = args.max_new_tokens;
    if let Some(context) = folders.iter().filter_map(|folder| folder.context_length).min() {
        let Some(room) = context.checked_sub(prompt.len()).filter(|&room| room > 0) else {
            bail!("the prompt has {} tokens, and the model's context of {context} leaves no room", prompt.len());
        };
        if room < max_new_tokens {
            note(&format!("note: {room} new tokens at most, the model's context is {context} tokens\n"));
            max_new_tokens = room;
        }
    }
    if !args.no_shared_buffer {
        let capacity = prompt.len() + max_new_tokens;
        let sources = std::iter::once(&model).chain(original).map(|source| &source.interface);
        sources.filter(|interface| interface.shares_buffer).try_for_each(|interface| {
            room::check_cache(&format!("--max-new-tokens {max_new_tokens}"), interface, capacity)
        })?;
    }
    let named = folders.into_iter().map(|folder| folder.end_of_sequence).find(|ends| !ends.is_empty());
    let ends = named.filter(|_| !args.ignore_eos).unwrap_or_default();
    let sampling = Sampling { temperature: args.temperature, top_k: args.top_k, top_p: args.top_p, seed: args.seed };
    let settings =
        Settings { threads: args.threads, shared_buffer: !args.no_shared_buffer, interrupt: Interrupt::install()? };
    let text_shown = !args.json.as_deref().is_some_and(whole_file::is_stdout);
    Ok(Task { model, spelling, prompt, max_new_tokens, sampling, ends, settings, text_shown })
}
