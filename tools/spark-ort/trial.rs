//! `spark-ort trial`: started by `rewrite` to run one token through a model.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use rustix::process::{Resource, Rlimit, Signal, setrlimit};
use spark_ort::rewrite::{NO_RUNTIME, TrialError, run_one_token};

use crate::terminal::note;
use crate::threads;

/// Run one token through a model
#[derive(clap::Args)]
pub struct Args {
    /// The model
    model: PathBuf,

    /// Most bytes of memory
    #[arg(long, value_name = "BYTES")]
    memory: u64,

    /// Threads
    #[arg(long, value_name = "N", value_parser = threads::count)]
    threads: usize,
}

pub fn run(args: &Args) -> Result<ExitCode> {
    // Limits writable memory; files mapped only for reading do not count.
    let limit = Rlimit { current: Some(args.memory), maximum: Some(args.memory) };
    setrlimit(Resource::Data, limit).context("cannot limit memory")?;
    let core = Rlimit { current: Some(0), maximum: Some(0) };
    setrlimit(Resource::Core, core).context("cannot forbid core files")?;
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).context("cannot follow the parent")?;
    match run_one_token(&args.model, Some(args.threads)) {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(TrialError::NoRuntime) => Ok(ExitCode::from(NO_RUNTIME)),
        Err(TrialError::Failed(why)) => {
            note(&format!("{why}\n"));
            Ok(ExitCode::FAILURE)
        }
    }
}
