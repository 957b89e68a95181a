//! `spark-ort`: the command line for models whose KV cache SparK prunes.

mod bench;
mod compare;
mod continuation;
mod counts;
mod decode;
mod doctor;
mod eval;
mod generate;
mod inspect;
mod interrupt;
mod model_files;
mod output;
mod processor;
mod progress;
mod prompt;
mod report;
mod rewrite;
mod room;
mod temporary;
mod terminal;
mod threads;
mod trial;
mod tune;
mod whole_file;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use spark_ort::rewrite::RewriteError;

/// Language models in ONNX whose KV cache is stored pruned.
///
/// ONNX Runtime 1.18 or later is needed: the shared library that ORT_DYLIB_PATH names, else that of the active Python
/// (`pip install onnxruntime`), else the system's libonnxruntime.so.
#[derive(Parser)]
#[command(version, max_term_width = 110)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Rewrite(rewrite::Args),
    Inspect(inspect::Args),
    Generate(generate::Args),
    Eval(Box<eval::Args>),
    Tune(Box<tune::Args>),
    Bench(bench::Args),
    Doctor(doctor::Args),
    #[command(hide = true)]
    Trial(trial::Args),
}

impl Command {
    fn run(&self) -> anyhow::Result<ExitCode> {
        // `inspect` runs nothing, and `doctor` reports what is wrong.
        if !matches!(self, Command::Inspect(_) | Command::Doctor(_)) {
            processor::check()?;
        }
        match self {
            Command::Rewrite(args) => rewrite::run(args),
            Command::Inspect(args) => inspect::run(args),
            Command::Generate(args) => generate::run(args),
            Command::Eval(args) => eval::run(args),
            Command::Tune(args) => tune::run(args),
            Command::Bench(args) => bench::run(args),
            Command::Doctor(args) => doctor::run(args),
            Command::Trial(args) => trial::run(args),
        }
    }
}

fn main() -> ExitCode {
    // Panics are reported below, like other errors.
    std::panic::set_hook(Box::new(|_| {}));
    match guarded(|| Cli::parse().command.run()) {
        Ok(code) => code,
        // The reader of the output, such as `head`, has closed it.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            terminal::note(&format!("error: {}\n", message(&error)));
            for cause in error.chain().skip(1) {
                terminal::note(&format!("  caused by: {cause}\n"));
            }
            ExitCode::FAILURE
        }
    }
}

/// The message of `error` with the option names of the command line.
fn message(error: &anyhow::Error) -> String {
    match error.downcast_ref::<RewriteError>() {
        // The report goes to the file that --json names.
        Some(RewriteError::Option { option: "report", problem }) => format!("--json: {problem}"),
        Some(RewriteError::Option { option, problem }) => format!("--{}: {problem}", option.replace('_', "-")),
        Some(e) if e.is_only_calibration() => {
            format!("{e}\nWithout calibration (--calibrate off) the model can be rewritten, but loses more accuracy.")
        }
        _ => error.to_string(),
    }
}

/// Runs `act`; a panic becomes an error that asks for a bug report.
fn guarded(act: impl FnOnce() -> anyhow::Result<ExitCode>) -> anyhow::Result<ExitCode> {
    let answer = std::panic::catch_unwind(std::panic::AssertUnwindSafe(act));
    answer.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
        Err(anyhow::anyhow!("a fault of this program, please report it: {text}"))
    })
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let kind = |cause: &(dyn std::error::Error + 'static)| cause.downcast_ref::<std::io::Error>().map(|e| e.kind());
    error.chain().any(|cause| kind(cause) == Some(std::io::ErrorKind::BrokenPipe))
}
