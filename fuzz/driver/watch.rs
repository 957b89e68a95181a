//! Runs each target in a process of its own and sees to it that it ends, and how.

use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::targets::TARGETS;
use crate::{Task, memory};

/// How long a mutant may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Fuzzes what `task` says.
///
/// # Errors
/// What failed, and how to run it again.
pub fn run(task: &Task) -> Result<()> {
    let chosen: Vec<_> = TARGETS.iter().filter(|(name, _)| task.target.as_ref().is_none_or(|t| t == name)).collect();
    let time = task.time / chosen.len().max(1) as u32;
    let mut failures = Vec::new();
    let mut total = 0;
    for (target, _) in chosen {
        let begin = Instant::now();
        let (mut first, mut failed) = (0, 0);
        while first < task.mutants && begin.elapsed() < time && failed < 20 {
            let (next, failure) = watch(task, target, first, time.saturating_sub(begin.elapsed()))?;
            first = next;
            if let Some(problem) = failure {
                failed += 1;
                let again = format!("--seed {} --mutant {target} {} 1", task.seed, next - 1);
                println!("{target}: mutant {}: {problem}\n    again: {again}", next - 1);
                failures.push(again);
            }
        }
        total += first;
        println!("{target:<10} {first:>9} mutants, {failed} failures, {:.0} s", begin.elapsed().as_secs_f64());
    }
    println!("{total} mutants in all, seed {}", task.seed);
    match failures.len() {
        0 => Ok(()),
        count => bail!("{count} mutants failed"),
    }
}

/// Runs mutants of `target` from `first` on until one fails or `time` is over; the next one, and what failed.
fn watch(task: &Task, target: &str, first: u64, time: Duration) -> Result<(u64, Option<String>)> {
    let folder = tempfile::tempdir()?;
    let count = (task.mutants - first).to_string();
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["--seed", &task.seed.to_string(), "--mutant", target, &first.to_string(), &count]);
    command.env("SPARK_FUZZ_FOLDER", folder.path()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().context("the fuzzer cannot start itself")?;
    let numbers = numbers(&mut child);
    let end = Instant::now() + time;
    let mut current = None;
    loop {
        match numbers.recv_timeout(PATIENCE) {
            Ok(_) if Instant::now() > end => {
                stop(&mut child);
                // The one that was begun does not count.
                return Ok((current.map_or(first, |n| n + 1), None));
            }
            Ok(number) => current = Some(number),
            Err(RecvTimeoutError::Timeout) => {
                stop(&mut child);
                return Ok((current.map_or(first, |n| n) + 1, Some(format!("more than {} s", PATIENCE.as_secs()))));
            }
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    let done = child.wait_with_output()?;
    let next = current.map_or(first, |n| n + 1);
    Ok(match done.status.code() {
        Some(0) => (next, None),
        Some(memory::EXIT_CODE) => (next, Some(format!("more than {} MB of memory", memory::MOST >> 20))),
        _ if current.is_none() => bail!("{target}: {}", String::from_utf8_lossy(&done.stderr)),
        _ => (next, Some(format!("{}: {}", done.status, String::from_utf8_lossy(&done.stderr).trim()))),
    })
}

/// The numbers of mutants as they are begun.
fn numbers(child: &mut Child) -> Receiver<u64> {
    let (sender, receiver) = channel();
    let mut stdout = child.stdout.take().expect("it is piped");
    std::thread::spawn(move || {
        let mut number = [0; 8];
        while stdout.read_exact(&mut number).is_ok() && sender.send(u64::from_le_bytes(number)).is_ok() {}
    });
    receiver
}

fn stop(child: &mut Child) {
    child.kill().and_then(|()| child.wait()).ok();
}
