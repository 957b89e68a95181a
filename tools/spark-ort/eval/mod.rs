//! `spark-ort eval`: what a compressed cache costs a model, measured.

mod candidate;
mod measure;
mod progress;
mod report;
mod rivals;
mod setting;
mod texts;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, bail};
use spark_ort::eval::Task;
use spark_ort::eval::rivals::Rival;
use spark_ort::rewrite::{Calibration, RewriteError};
use spark_ort::runtime::load;

use crate::interrupt::{self, Interrupt};
use crate::report::write_json;
use candidate::{Candidate, Kind, Rewriter};
use measure::Measurement;
use report::Report;
use setting::Setting;

/// Measure what a compressed cache costs a model: loss, KL divergence, agreement, bytes and speed
///
/// Each model reads prompts of a text and then the tokens that really follow, one by one, as in production; its
/// predictions are compared with the original's, whose cache is complete. Intervals are of 95 % confidence, by a
/// bootstrap over blocks of 16 tokens. Speed is that of this machine while it measures. Ctrl-C ends it and still shows
/// what there is.
#[derive(clap::Args)]
#[command(after_long_help = "\
Examples:
  Three settings, tried on a model that stays as it is:
    spark-ort eval llama/ --settings 0.5/8/8,0.7/4/4,0.7/4/4+64 --text novel.txt

  A model that was rewritten before, as ONNX Runtime GenAI runs it, prompts in chunks of 512 tokens:
    spark-ort eval llama/ llama-spark/ --text novel.txt --shared-buffer --chunk 512

  The default beside everything else that makes caches smaller:
    spark-ort eval llama/ --settings 0.5/8/8+64 --rivals all --text novel.txt --shared-buffer")]
pub struct Args {
    /// The model with a complete cache: an .onnx file, an ONNX Runtime GenAI folder, or a folder with one .onnx file
    original: PathBuf,

    /// Rewritten models to compare with it
    rewritten: Vec<PathBuf>,

    /// Settings to rewrite the original with for this measurement: share of pruned key channels, bits of keys and of
    /// values, and how many recent keys stay dense: in free rows of a shared buffer, else as inputs
    #[arg(long, value_name = "RATIO/BITS/BITS[+RECENT],...", value_delimiter = ',')]
    settings: Vec<Setting>,

    /// Other ways to make the cache smaller, on the original: int8, int4, hadamard4, hadamard3, oscar4, oscar3,
    /// oscar2, think0.5, snapkv0.5 (simulated), ort-int8, ort-int4 (ONNX Runtime's own), or all; +N keeps N recent
    /// tokens dense
    #[arg(long, value_name = "NAME[+RECENT],...|all", value_delimiter = ',')]
    rivals: Vec<Rivals>,

    /// The text to read
    #[arg(long, value_name = "FILE")]
    text: PathBuf,

    /// Lengths of the prompts in tokens
    #[arg(long, value_name = "N,...", value_delimiter = ',', default_values_t = [2048])]
    contexts: Vec<usize>,

    /// Tokens to decode after each prompt
    #[arg(long, value_name = "N", default_value_t = 128)]
    decode: usize,

    /// Passages of the text for each length, as far as it has so many that do not overlap
    #[arg(long, value_name = "N", default_value_t = 4)]
    passages: usize,

    /// Tasks whose answers lie in the prompt: how many are answered
    #[arg(long, value_name = "TASK,...", value_enum, value_delimiter = ',')]
    tasks: Vec<Task>,

    /// Prompts of each task and length
    #[arg(long, value_name = "N", default_value_t = 8)]
    samples: usize,

    /// Keep past and present in one buffer of fixed size, as ONNX Runtime GenAI does, where a model allows it
    #[arg(long)]
    shared_buffer: bool,

    /// Tokens that such a buffer has room for [default: 512 more than are needed, within the model's context]
    #[arg(long, value_name = "N", requires = "shared_buffer")]
    capacity: Option<usize>,

    /// Read prompts in chunks of N tokens
    #[arg(long, value_name = "N")]
    chunk: Option<usize>,

    /// What settings are calibrated on, as of `rewrite`
    #[arg(long, value_name = "FILE|random|off", default_value = "auto")]
    calibrate: Calibration,

    /// Calibrate on at most so many tokens
    #[arg(long, value_name = "N", default_value_t = 4096)]
    calibration_tokens: usize,

    /// The tokenizer.json to use [default: the one beside the original]
    #[arg(long, value_name = "FILE")]
    tokenizer: Option<PathBuf>,

    /// Threads that compute [default: one per physical core]
    #[arg(long, value_name = "N")]
    threads: Option<usize>,

    /// Also write what is shown as JSON to a file, or to stdout (-) in place of the table
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// One rival, or all.
#[derive(Clone)]
struct Rivals(Vec<Rival>);

impl std::str::FromStr for Rivals {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Ok(Self(if text == "all" { Rival::all() } else { vec![text.parse()?] }))
    }
}

pub fn run(args: &Args) -> Result<ExitCode> {
    check(args)?;
    let original = Candidate::given(&args.original, Kind::Original)?;
    let given =
        args.rewritten.iter().map(|path| Candidate::given(path, Kind::Rewritten)).collect::<Result<Vec<_>>>()?;
    let texts = texts::read(args, &original.file)?;
    let interrupt = Interrupt::install()?;
    let mut report = Report {
        original: args.original.clone(),
        onnxruntime: load()?.version().into(),
        text: args.text.clone(),
        decode: args.decode,
        shared_buffer: args.shared_buffer,
        capacity: args.capacity,
        chunk: args.chunk,
        threads: args.threads,
        rows: Vec::new(),
        absent: Vec::new(),
        interrupted: false,
    };
    let outcome = measure_all(args, &original, &given, &texts, &interrupt, &mut report);
    report.interrupted = interrupt.is_set();
    match outcome {
        // Ctrl-C ends a rewrite too.
        Err(error) if report.interrupted && error.chain().any(is_cancelled) => {}
        outcome => outcome?,
    }
    match args.json.as_deref() {
        Some(path) if path.as_os_str() == "-" => write_json(path, &report)?,
        other => {
            crate::terminal::show(&report.lines())?;
            other.map_or(Ok(()), |path| write_json(path, &report))?;
        }
    }
    Ok(if report.interrupted { ExitCode::from(interrupt::EXIT_CODE) } else { ExitCode::SUCCESS })
}

fn is_cancelled(error: &(dyn std::error::Error + 'static)) -> bool {
    matches!(error.downcast_ref(), Some(RewriteError::Cancelled))
}

fn measure_all(
    args: &Args,
    original: &Candidate,
    given: &[Candidate],
    texts: &[texts::Text],
    interrupt: &Interrupt,
    report: &mut Report,
) -> Result<()> {
    let rewriter = Rewriter {
        original: &args.original,
        in_buffer: args.shared_buffer && original.inspection.interface.shares_buffer,
        calibrate: args.calibrate.clone(),
        calibration_tokens: args.calibration_tokens,
        tokenizer: args.tokenizer.clone(),
        threads: args.threads,
        interrupt,
    };
    let rivals = args.rivals.iter().flat_map(|rivals| rivals.0.clone()).collect::<Vec<_>>();
    let simulated = rivals.iter().filter(|rival| rival.is_simulated()).count();
    let models = 1 + given.len() + args.settings.len() + rivals.len() - simulated;
    let mut measurement = Measurement::new(texts, models, simulated, args.threads, interrupt)?;
    measurement.original(original, &mut report.rows)?;
    for model in given {
        measurement.candidate(model, &mut report.rows)?;
    }
    for setting in &args.settings {
        if interrupt.is_set() {
            break;
        }
        let candidate = measurement.pause(|| rewriter.rewrite(setting))?;
        measurement.candidate(&candidate, &mut report.rows)?;
    }
    rivals::measure(&mut measurement, original, &rivals, report)
}

fn check(args: &Args) -> Result<()> {
    let at_least_one = [
        ("--threads", args.threads),
        ("--chunk", args.chunk),
        ("--decode", Some(args.decode)),
        ("--passages", Some(args.passages)),
        ("--samples", Some(args.samples)),
        ("--contexts", args.contexts.iter().min().copied()),
    ];
    if let Some((option, _)) = at_least_one.into_iter().find(|(_, value)| *value == Some(0)) {
        bail!("{option} is 0: at least 1 is needed");
    }
    Ok(())
}
