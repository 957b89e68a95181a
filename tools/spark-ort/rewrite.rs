//! `spark-ort rewrite`: rewrites a model so that its cache is stored pruned.

use std::path::PathBuf;
use std::process::ExitCode;
use std::slice;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Result;
use spark_ort::onnx::Placement;
use spark_ort::rewrite::{CacheType, Calibration, Options, Progress, RecentIn, Recovery};

use crate::progress::Steps;
use crate::report::publish;
use crate::terminal::note;
use crate::{threads, whole_file};

/// Rewrite a model so that its KV cache is stored pruned
///
/// Finds every attention layer, as GroupQueryAttention, MultiHeadAttention, ONNX Attention or MatMul and Softmax, and
/// puts SparkAttention and SparkPrune in its place. Names of inputs and outputs stay; only the last dimension of the
/// cache changes, so hosts feed present_* back as past_* as before. All layers are rewritten or none, and IN is never
/// changed.
#[derive(clap::Args)]
#[command(after_long_help = "\
Examples:
  An ONNX Runtime GenAI folder, half the key channels pruned, the rest and the values at 8 bits:
    spark-ort rewrite llama/ llama-spark/

  The same of a single file, about a quarter of the memory, the last 16 keys dense:
    spark-ort rewrite model.onnx small.onnx --ratio 0.7 --key-bits 4 --value-bits 4 --recent 16

  Keys in a calibrated basis, 32 bytes each, the last 64 dense:
    spark-ort rewrite model.onnx small.onnx --basis calibrated --key-bytes 32 --recent 64

  Ratio and bits by layer, from a recipe of `spark-ort tune`:
    spark-ort rewrite model.onnx small.onnx --recipe recipe.json --recent 64

  Whether a model can be rewritten, and what it would gain:
    spark-ort rewrite model.onnx out.onnx --dry-run")]
pub struct Args {
    /// The exported model: an .onnx file or an ONNX Runtime GenAI folder
    #[arg(value_name = "IN")]
    input: PathBuf,

    /// Where the rewritten one goes, of the same kind
    #[arg(value_name = "OUT")]
    output: PathBuf,

    /// Share of key channels to prune, 0 to below 1; fewer are pruned where padded rows have room for more
    #[arg(long, default_value_t = 0.5, allow_negative_numbers = true)]
    ratio: f64,

    /// Bits of a kept key channel: 16, 8 or 4
    #[arg(long, value_name = "BITS", default_value_t = 8)]
    key_bits: u8,

    /// Bits of a value channel: 16, 8 or 4
    #[arg(long, value_name = "BITS", default_value_t = 8)]
    value_bits: u8,

    /// How rows are laid out: 1, or 2, which is more accurate at 4 bits; 3 is --basis calibrated
    #[arg(long, value_name = "NUMBER", default_value_t = 1, value_parser = row_format)]
    row_format: u8,

    /// Store keys in a basis that calibration finds, with 8, 4 or 2 bits a direction: less error below a quarter of
    /// float16. For attention that rotates its keys
    #[arg(
        long,
        value_enum,
        conflicts_with_all = ["ratio", "key_bits", "row_format", "recovery", "exact_ratio", "recipe"]
    )]
    basis: Option<Basis>,

    /// Bytes of a key row in a basis, a multiple of 4; padding is used too [default: half a byte a channel]
    #[arg(long, value_name = "N", requires = "basis")]
    key_bytes: Option<usize>,

    /// Ratio, bits and row format of each layer, as `spark-ort tune` writes them
    #[arg(
        long,
        value_name = "FILE",
        conflicts_with_all = ["ratio", "key_bits", "value_bits", "row_format", "uniform_rows", "exact_ratio"]
    )]
    recipe: Option<PathBuf>,

    /// What a pruned channel reads as: its sign times the root mean square of the row's pruned ones, its sign times a
    /// magnitude drawn from their distribution (slower), or zero
    #[arg(long, value_enum, default_value_t = Recovery::Mean)]
    recovery: Recovery,

    /// Keep the last N keys dense as well; at least 16 are advised above ratio 0.6 [default: 64 in a GenAI folder
    /// whose past and present share a buffer, else 0]
    #[arg(long, value_name = "N")]
    recent: Option<usize>,

    /// Keep them in free rows of the buffer that past and present share, which asks nothing of the host, or in an input
    /// and output more a layer; auto: in the buffer in a GenAI folder, in inputs elsewhere
    #[arg(long, value_name = "PLACE", value_enum, default_value_t = RecentIn::Auto)]
    recent_in: RecentIn,

    /// Element type of the cache tensors: the original's, which hosts allocate, or bytes
    #[arg(long, value_enum, default_value_t = CacheType::Same)]
    cache_type: CacheType,

    /// Pad key and value rows to one size, as a GenAI folder always has them
    #[arg(long)]
    uniform_rows: bool,

    /// Prune exactly the share --ratio, even where key rows are padded and have room for more channels
    #[arg(long)]
    exact_ratio: bool,

    /// Measure the model's queries on the text in FILE, on random tokens, or not at all; auto: on a bundled text, or on
    /// random tokens where there is no tokenizer
    #[arg(long, value_name = "FILE|random|off", default_value = "auto")]
    calibrate: Calibration,

    /// Measure on at most so many tokens
    #[arg(long, value_name = "N", default_value_t = 4096)]
    calibration_tokens: usize,

    /// The tokenizer.json for calibration, or its folder [default: the one beside the model]
    #[arg(long, value_name = "FILE")]
    tokenizer: Option<PathBuf>,

    /// How external data comes to another folder. Links take no space, but the onnx Python package refuses linked data
    #[arg(long, value_enum, default_value_t = Placement::Copy)]
    data: Placement,

    /// The libspark_ort.so that a GenAI folder gets [default: the one beside this program]
    #[arg(long, value_name = "FILE")]
    library: Option<PathBuf>,

    /// Name this execution provider in a GenAI folder too, after those that it names: cuda, or SparkExecutionProvider
    #[arg(long, value_name = "NAME", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    provider: Option<String>,

    /// Replace OUT if it exists
    #[arg(long)]
    force: bool,

    /// Only say whether the model can be rewritten and what would come out
    #[arg(long)]
    dry_run: bool,

    /// Threads for calibration [default: one per physical core]
    #[arg(long, value_name = "N", value_parser = threads::count)]
    threads: Option<usize>,

    /// Do not run one token through what was written. Otherwise that is done in a process of its own, for models of up
    /// to 4 GiB, and a model that fails there although the original runs is not written
    #[arg(long)]
    no_trial: bool,

    /// Also write the report as JSON to a file, or to stdout (-) in place of the text
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Format 3 has neither a ratio nor bits of keys, which options beside it would state.
fn row_format(text: &str) -> Result<u8, String> {
    match text.parse() {
        Ok(number @ 1..=2) => Ok(number),
        Ok(3) => Err("keys in a basis are asked for by --basis calibrated".into()),
        _ => Err("is not 1 or 2".into()),
    }
}

/// A basis of keys.
#[derive(Clone, Copy, clap::ValueEnum)]
enum Basis {
    /// One of each KV head, in which errors of all scores count alike
    Calibrated,
}

struct Shown {
    steps: Steps,
    cancelled: Arc<AtomicBool>,
}

impl Progress for Shown {
    fn step(&mut self, what: &str, done: usize, total: usize) {
        self.steps.show(what, done, total);
    }

    fn cancelled(&self) -> bool {
        self.cancelled.load(Ordering::SeqCst)
    }
}

pub fn run(args: &Args) -> Result<ExitCode> {
    let options = Options {
        ratio: args.ratio,
        key_bits: args.key_bits,
        value_bits: args.value_bits,
        row_format: if args.basis.is_some() { 3 } else { args.row_format },
        key_bytes: args.key_bytes,
        recipe: args.recipe.clone(),
        recovery: args.recovery,
        recent: args.recent,
        recent_in: args.recent_in,
        cache_type: args.cache_type,
        uniform_rows: args.uniform_rows,
        exact_ratio: args.exact_ratio,
        calibrate: args.calibrate.clone(),
        calibration_tokens: args.calibration_tokens,
        tokenizer: args.tokenizer.clone(),
        data: args.data,
        library: args.library.clone(),
        provider: args.provider.clone(),
        report: args.json.clone().filter(|path| !whole_file::is_stdout(path)),
        force: args.force,
        dry_run: args.dry_run,
        threads: args.threads,
        trial: (!args.no_trial).then(std::env::current_exe).transpose()?,
    };
    if let Some(json) = &args.json {
        // What else it may not be, the rewrite says.
        whole_file::check("--json", json, slice::from_ref(&args.output))?;
    }
    let cancelled = Arc::new(AtomicBool::new(false));
    let handler = cancelled.clone();
    // The work stops at its next step and removes its partial output.
    crate::interrupt::on_signals(move || handler.store(true, Ordering::SeqCst))?;
    let mut progress = Shown { steps: Steps::default(), cancelled };
    let report = spark_ort::rewrite(&args.input, &args.output, &options, &mut progress);
    drop(progress);
    if matches!(report, Err(spark_ort::rewrite::RewriteError::Cancelled)) {
        note("cancelled, nothing was written\n");
        return Ok(crate::interrupt::status(true));
    }
    let report = report?;
    publish(args.json.as_deref(), &report, || report.to_string())?;
    Ok(ExitCode::SUCCESS)
}
