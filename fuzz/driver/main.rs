//! Fuzzes on stable Rust: mutants of seeds go to the targets, in processes of their own that are watched. A panic, a
//! crash, more than 10 seconds or more than 1 GB of memory are failures.
//!
//! `fuzz [--seconds N] [--mutants N] [--target NAME] [--seed N]`; `--mutant NAME NUMBER [--seed N]` runs one again.
//! Mutant NUMBER of a target and seed is the same everywhere.

#[path = "../../tests/support/common.rs"]
mod common;
mod graph;
mod memory;
mod mutate;
#[path = "../targets/mod.rs"]
mod targets;
mod watch;
mod weights;
mod work;

use std::time::Duration;

use anyhow::{Context, Result, bail};

#[global_allocator]
static MEMORY: memory::Counted = memory::Counted;

/// What a command line asks for.
struct Task {
    /// Time for all targets together.
    time: Duration,
    /// Mutants of each target at most.
    mutants: u64,
    target: Option<String>,
    seed: u64,
}

fn main() -> Result<()> {
    let mut task = Task { time: Duration::from_secs(5), mutants: u64::MAX, target: None, seed: 1 };
    let mut words = std::env::args().skip(1);
    let mut one = None;
    while let Some(word) = words.next() {
        let mut value = || words.next().with_context(|| format!("{word} needs a value"));
        match word.as_str() {
            "--seconds" => task.time = Duration::from_secs(value()?.parse()?),
            "--mutants" => task.mutants = value()?.parse()?,
            "--target" => task.target = Some(value()?),
            "--seed" => task.seed = value()?.parse()?,
            "--mutant" => one = Some((value()?, value()?.parse::<u64>()?, value()?.parse::<u64>()?)),
            // What `cargo test` passes on to every test.
            "--nocapture" | "--quiet" | "-q" | "--list" => {}
            other => bail!("there is no option {other}"),
        }
    }
    match one {
        Some((target, first, count)) => work::run(&target, task.seed, first, count),
        None => watch::run(&task),
    }
}
