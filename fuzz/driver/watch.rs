//! Runs each target in a process of its own and sees to it that it ends, and how.

use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::targets::{self, TARGETS};
use crate::{Task, memory};

/// How long a mutant may take, by the clock of its process: others may keep the machine busy.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long one may take that does not compute, but waits for something.
const WAITING: Duration = Duration::from_secs(60);

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
        if *target == targets::NEEDS_RUNTIME
            && let Err(why) = spark_ort::runtime::load()
        {
            println!("{target:<10} skipped: {why}");
            continue;
        }
        let begin = Instant::now();
        let (mut first, mut failed, mut foreign) = (0, 0, 0);
        let folder = tempfile::tempdir()?;
        while first < task.mutants && begin.elapsed() < time && failed < 20 {
            let left = time.saturating_sub(begin.elapsed());
            let (next, failure) = watch(task, target, first, left, folder.path())?;
            first = next;
            if std::fs::remove_file(folder.path().join(targets::FOREIGN)).is_ok() {
                foreign += 1;
            } else if let Some(problem) = failure {
                failed += 1;
                let again = format!("--seed {} --mutant {target} {} 1", task.seed, next - 1);
                println!("{target}: mutant {}: {problem}\n    again: {again}", next - 1);
                failures.push(again);
            }
        }
        total += first;
        let seconds = begin.elapsed().as_secs_f64();
        println!("{target:<10} {first:>9} mutants, {failed} failures, {seconds:.0} s");
        if let Ok(compared) = std::fs::metadata(folder.path().join(targets::COMPARED)) {
            println!("{:<10} {:>9} of them compared, {foreign} ended ONNX Runtime itself", "", compared.len());
        } else if *target == targets::NEEDS_RUNTIME && first > 100 {
            bail!("of {first} mutants none could be compared");
        }
    }
    println!("{total} mutants in all, seed {}", task.seed);
    match failures.len() {
        0 => Ok(()),
        count => bail!("{count} mutants failed"),
    }
}

/// Runs mutants of `target` from `first` on until one fails or `time` is over; the next one, and what failed.
fn watch(task: &Task, target: &str, first: u64, time: Duration, folder: &Path) -> Result<(u64, Option<String>)> {
    let count = (task.mutants - first).to_string();
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["--seed", &task.seed.to_string(), "--mutant", target, &first.to_string(), &count]);
    command.env("SPARK_FUZZ_FOLDER", folder).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().context("the fuzzer cannot start itself")?;
    let numbers = numbers(&mut child);
    let end = Instant::now() + time;
    let mut current = None;
    let (mut begun, mut computed) = (Instant::now(), Duration::ZERO);
    loop {
        match numbers.recv_timeout(Duration::from_secs(1)) {
            Ok(_) if Instant::now() > end => {
                stop(&mut child);
                // The one that was begun does not count.
                return Ok((current.map_or(first, |n| n + 1), None));
            }
            Ok(number) => {
                current = Some(number);
                (begun, computed) = (Instant::now(), cpu_time(&child));
            }
            Err(RecvTimeoutError::Timeout)
                if begun.elapsed() > WAITING || cpu_time(&child).saturating_sub(computed) > PATIENCE =>
            {
                stop(&mut child);
                return Ok((current.unwrap_or(first) + 1, Some(format!("more than {} s", PATIENCE.as_secs()))));
            }
            Err(RecvTimeoutError::Timeout) => {}
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

/// Time that a process has computed for, as far as the system tells.
fn cpu_time(child: &Child) -> Duration {
    let text = std::fs::read_to_string(format!("/proc/{}/stat", child.id())).unwrap_or_default();
    // Behind the name, which may have anything in it: fields 14 and 15 are hundredths of a second.
    let fields = text.rsplit_once(')').map_or("", |(_, fields)| fields).split_whitespace();
    let ticks: u64 = fields.skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
    Duration::from_millis(10 * ticks)
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
