//! What decoding and prompts take on an NVIDIA GPU, by the kernels of `ops/`, beside dense attention by PyTorch and
//! what the device reads and copies meanwhile. `tools/cuda.sh` builds what this needs and runs it.
//!
//! Everything is launched as CUDA graphs of several layers whose caches together are much larger than the device's L2,
//! and timed by events, alternating. Outputs and rows are compared with the CPU's.

#[path = "../../tools/spark-ort/bench/basis.rs"]
mod basis;
#[path = "../../tests/support/common.rs"]
mod common;
#[path = "../../tests/gpu/cuda/mod.rs"]
mod cuda;
mod dense;
mod layer;
mod measure;
mod reference;
mod report;
mod shape;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Error, Result, ensure};
use clap::Parser;
use serde_json::{Value, json};

use cuda::Cuda;
use dense::Dense;
use measure::Bench;
use shape::{Heads, Setting, Shape};

/// As tools/setup.sh has it: neither passed nor failed.
const SKIPPED: u8 = 77;

const SETTINGS: &str = "0.5/16/16,0.5/8/8,0.5/8/8+64,basis64/8,0.7/4/4,0.7/4/4+64,basis60/4";

/// Times SparkPrune and SparkAttention on an NVIDIA GPU. The kernels are those of the fatbin that SPARK_CUDA_CODE
/// names.
#[derive(Debug, Parser)]
struct Options {
    /// Only say which GPU there is; status 77 if none
    #[arg(long)]
    probe: bool,
    /// The fatbin of read.cu
    #[arg(long, value_name = "FILE", required_unless_present = "probe")]
    read_code: Option<PathBuf>,
    /// sdpa.py; without it dense attention is not timed
    #[arg(long, value_name = "FILE")]
    dense: Option<PathBuf>,
    /// What runs sdpa.py
    #[arg(long, value_name = "PROGRAM", default_value = "python3")]
    python: String,
    /// Where sdpa.py computes: cuda, or cpu to rehearse
    #[arg(long, default_value = "cuda")]
    dense_device: String,
    /// Figures go here too
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Ratio, key bits and value bits, or bytes of a key in a basis and value bits (basis64/8), and after a plus recent
    /// keys that free rows keep dense
    #[arg(long, value_delimiter = ',', default_value = SETTINGS)]
    settings: Vec<Setting>,
    /// Cached tokens of a sequence when decoding
    #[arg(long, value_delimiter = ',', default_value = "4096,32768")]
    contexts: Vec<usize>,
    /// Sequences when decoding
    #[arg(long, value_delimiter = ',', default_value = "1,8")]
    batches: Vec<usize>,
    /// Tokens of a first prompt of one sequence
    #[arg(long, value_delimiter = ',', default_value = "2048,8192")]
    prompts: Vec<usize>,
    /// Query heads and KV heads
    #[arg(long, default_value = "32/8")]
    heads: Heads,
    /// Channels of a head
    #[arg(long, default_value_t = 128)]
    head_dim: usize,
    /// Rounds, of which medians are taken
    #[arg(long, default_value_t = 15)]
    rounds: usize,
    /// MiB that caches of all layers have at least, and that are read and copied
    #[arg(long, default_value_t = 1024)]
    working_set: usize,
    /// Most layers
    #[arg(long, default_value_t = 128)]
    most_layers: usize,
    /// Tokens that a call writes when caches are filled
    #[arg(long, default_value_t = 4096)]
    chunk: usize,
    /// As `cargo bench` gives it; nothing
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    let options = Options::parse();
    let cuda = match Cuda::open() {
        Ok(cuda) => cuda,
        Err(problem) => {
            println!("no CUDA GPU can be used: {problem}");
            return ExitCode::from(SKIPPED);
        }
    };
    let about = cuda.properties();
    println!(
        "{}, compute capability {}, {} multiprocessors, {} MiB of L2, CUDA {}",
        about.name,
        about.capability,
        about.for_plan.compute_units,
        about.l2_bytes >> 20,
        about.cuda
    );
    if options.probe {
        return ExitCode::SUCCESS;
    }
    match run(&options, &cuda) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => {
            eprintln!("error: results differ from the CPU's by more than rounding explains: see the last column");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whether all results are the CPU's.
fn run(options: &Options, cuda: &Cuda) -> Result<bool> {
    ensure!(options.rounds > 0 && options.chunk > 0 && options.most_layers > 0, "rounds, chunk and layers: at least 1");
    ensure!(options.batches.iter().chain(&options.contexts).all(|&n| n > 0), "batches and contexts: at least 1");
    let shape = Shape { query_heads: options.heads.0, kv_heads: options.heads.1, head_dim: options.head_dim };
    let (mut dense, peer) = match &options.dense {
        None => (None, json!({ "error": "not asked for" })),
        Some(script) => match Dense::start(&options.python, script, &options.dense_device) {
            Ok(dense) => {
                let about = dense.about.clone();
                (Some(dense), about)
            }
            Err(error) => {
                println!("no dense attention to compare with: {error:#}");
                (None, json!({ "error": format!("{error:#}") }))
            }
        },
    };
    let read_code = options.read_code.as_ref().context("--read-code is missing")?;
    let most = options.contexts.iter().chain(&options.prompts).max().copied().unwrap_or(1);
    let longest_call = options.chunk.max(options.prompts.iter().max().copied().unwrap_or(0));
    let most_tokens = longest_call.max(options.batches.iter().max().copied().unwrap_or(0));
    let mut bench = Bench::new(
        cuda,
        shape,
        (most_tokens, most + 1),
        read_code,
        measure::Budget {
            rounds: options.rounds,
            working_set: options.working_set << 20,
            most_layers: options.most_layers,
            chunk: options.chunk,
        },
    )
    .map_err(Error::msg)?;

    let mut results = Vec::new();
    for &context in &options.contexts {
        for &batch in &options.batches {
            results.push(bench.measure(&options.settings, (batch, context, 1), dense.as_mut())?);
            println!("{}", report::progress(results.last().expect("pushed above")));
        }
    }
    for &prompt in &options.prompts {
        results.push(bench.measure(&options.settings, (1, 0, prompt), dense.as_mut())?);
        println!("{}", report::progress(results.last().expect("pushed above")));
    }
    let about = cuda.properties();
    let figures = json!({
        "device": about.name,
        "compute_capability": about.capability,
        "multiprocessors": about.for_plan.compute_units,
        "l2_bytes": about.l2_bytes,
        "cuda": about.cuda,
        "query_heads": shape.query_heads,
        "kv_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "rounds": options.rounds,
        "dense": peer,
        "tolerance": reference::TOLERANCE,
        "rounded_tolerance": reference::ROUNDED_TOLERANCE,
        "results": results,
    });
    if let Some(file) = &options.json {
        let text = serde_json::to_string_pretty(&figures)? + "\n";
        std::fs::write(file, text).with_context(|| file.display().to_string())?;
    }
    print!("{}", report::tables(&figures));
    Ok(results.iter().all(right))
}

/// Whether the results of a shape are the CPU's.
fn right(result: &Value) -> bool {
    let is_prompt = result["new"].as_u64().is_some_and(|new| new > 1);
    let most = if is_prompt { reference::ROUNDED_TOLERANCE } else { reference::TOLERANCE };
    let caches = result["caches"].as_array().into_iter().flatten();
    caches.into_iter().all(|cache| {
        let near = cache["difference"].as_f64().is_some_and(|d| d <= f64::from(most));
        near && cache["differing_rows"].as_u64() == Some(0)
    })
}
