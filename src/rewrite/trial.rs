//! A trial of the rewritten model: one token is run through it in a separate process with limited memory and time,
//! since what a model needs is only known when it runs.

use std::io::{Read, Seek};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use super::calibrate::chain;
use super::error::RewriteError;
use super::progress::Progress;
use crate::onnx::FileError;
use crate::runtime::{Error, Model, Options as RunOptions, load, memory};

/// The exit status of a trial without an ONNX Runtime.
pub const NO_RUNTIME: u8 = 3;

/// Larger models are not tried, in bytes.
const LARGEST: u64 = 4 << 30;

/// Memory that ONNX Runtime needs besides the model.
const BASE: u64 = 768 << 20;

/// Most bytes of memory per byte of a model: as read, as constants, and as kernels lay it out, in a wider type than it
/// is stored in.
const BYTES_PER_BYTE: u64 = 4;

/// More threads would only need more memory.
const THREADS: usize = 2;

/// The result of a trial.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trial {
    /// The model runs.
    Runs,
    /// There is no program to run it, or no ONNX Runtime.
    NotPossible,
    /// It would need more memory or time than allowed; says which.
    NotAffordable(String),
    /// ONNX Runtime runs neither this model nor the original here; says why not this one.
    NeitherRuns(String),
}

impl Trial {
    /// The warning for the user.
    pub fn warning(self) -> Option<String> {
        match self {
            Trial::Runs | Trial::NotPossible => None,
            Trial::NotAffordable(why) => Some(format!("the written model was not tried: {why}")),
            Trial::NeitherRuns(why) => {
                Some(format!("not tried: ONNX Runtime runs neither this model nor the original here: {why}"))
            }
        }
    }
}

/// How one run ended.
enum Ending {
    Ran,
    NoRuntime,
    TooMuch(String),
    Failed(String),
}

/// Makes `program` run one token through the model at `path` and, if that fails, through the original. Both have about
/// `bytes`, including data.
///
/// # Errors
/// The original runs and this model does not, or the caller cancelled.
pub fn trial(
    program: Option<&Path>,
    path: &Path,
    original: &Path,
    bytes: u64,
    progress: &mut dyn Progress,
) -> Result<Trial, RewriteError> {
    let Some(program) = program else { return Ok(Trial::NotPossible) };
    let why = match run(program, path, bytes, progress)? {
        Ending::Ran => return Ok(Trial::Runs),
        Ending::NoRuntime => return Ok(Trial::NotPossible),
        Ending::TooMuch(why) => return Ok(Trial::NotAffordable(why)),
        Ending::Failed(why) => why,
    };
    match run(program, original, bytes, progress)? {
        Ending::Ran => Err(RewriteError::Trial(why)),
        _ => Ok(Trial::NeitherRuns(why)),
    }
}

/// Runs one token through the model at `path` in this process, or the fixed number of tokens that it takes.
///
/// # Errors
/// There is no ONNX Runtime, or the model fails in it.
pub fn run_one_token(path: &Path, threads: Option<usize>) -> Result<(), TrialError> {
    load().map_err(|_| TrialError::NoRuntime)?;
    let failed = |e: Error| TrialError::Failed(chain(&e));
    let model = super::inspect(path).map_err(|e| TrialError::Failed(chain(&e)))?;
    let mut session = Model::open_filling(path, &model.interface, &RunOptions { threads }).map_err(failed)?;
    let mut sequence = session.start(None).map_err(failed)?;
    // No other output is requested: the caches show that all layers ran.
    let tokens = vec![0; session.fixed_tokens().unwrap_or(1)];
    session.run_with_outputs(&mut sequence, &tokens, &[]).map(drop).map_err(failed)
}

/// Why the run of one token failed.
#[derive(Debug, thiserror::Error)]
pub enum TrialError {
    /// There is no ONNX Runtime.
    #[error("there is no ONNX Runtime")]
    NoRuntime,
    /// The error of ONNX Runtime.
    #[error("{0}")]
    Failed(String),
}

fn run(program: &Path, path: &Path, bytes: u64, progress: &mut dyn Progress) -> Result<Ending, RewriteError> {
    if bytes > LARGEST {
        let why = format!("a model of {bytes} bytes is too large for a trial; `spark-ort generate` runs it");
        return Ok(Ending::TooMuch(why));
    }
    let available = memory::available().unwrap_or(u64::MAX);
    if available < bytes.saturating_add(BASE / 2) {
        return Ok(Ending::TooMuch(format!("{bytes} bytes of a model, and {available} bytes of memory are free")));
    }
    let limit = available.min(BYTES_PER_BYTE * bytes + BASE);
    let time = Duration::from_secs(30 + 30 * (bytes >> 30));
    let mut said = tempfile::tempfile().map_err(FileError::io(path))?;
    let mut command = Command::new(program);
    command.arg("trial").arg(path).args(["--memory", &limit.to_string(), "--threads", &THREADS.to_string()]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(said.try_clone().map_err(FileError::io(path))?);
    let child = command.spawn().map_err(FileError::io(program))?;
    let Some(status) = wait(child, time, progress).map_err(FileError::io(program))? else {
        return match progress.cancelled() {
            true => Err(RewriteError::Cancelled),
            false => Ok(Ending::TooMuch(format!("it did not end within {} s", time.as_secs()))),
        };
    };
    let mut text = Vec::new();
    said.rewind().and_then(|()| said.take(1 << 14).read_to_end(&mut text)).map_err(FileError::io(path))?;
    let text = String::from_utf8_lossy(&text).trim().to_string();
    Ok(match status.code() {
        Some(0) => Ending::Ran,
        Some(code) if code == i32::from(NO_RUNTIME) => Ending::NoRuntime,
        _ if is_of_memory(&text) => Ending::TooMuch(format!("{limit} bytes of memory do not suffice: {text}")),
        Some(_) => Ending::Failed(text),
        None => Ending::Failed(format!("it ended by {status}: {text}")),
    })
}

/// How `child` ended; `None` if it was stopped, because `time` passed or the caller cancelled.
fn wait(mut child: Child, time: Duration, progress: &mut dyn Progress) -> std::io::Result<Option<ExitStatus>> {
    let end = Instant::now() + time;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if progress.cancelled() || Instant::now() > end {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Whether the error is a lack of memory, in the words of C++, ONNX Runtime or Rust.
fn is_of_memory(text: &str) -> bool {
    ["bad_alloc", "Failed to allocate memory", "memory allocation of", "Cannot allocate memory", "bad array new length"]
        .iter()
        .any(|sign| text.contains(sign))
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Quiet {
        cancelled: bool,
    }

    impl Progress for Quiet {
        fn step(&mut self, _: &str, _: usize, _: usize) {}

        fn cancelled(&self) -> bool {
            self.cancelled
        }
    }

    /// The outcome if the program is a shell script, which gets the model as "$2".
    fn with(script: &str, bytes: u64, cancelled: bool) -> Result<Trial, String> {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("program");
        // Another process writes it: if this one did, what a concurrent test starts could hold the open file for a
        // moment, and a program that is open for writing is not executed (ETXTBSY).
        let mut writer = Command::new("/bin/sh");
        writer.args(["-c", r#"printf '#!/bin/sh\n%s\n' "$1" > "$0" && chmod 700 "$0""#]).arg(&program).arg(script);
        assert!(writer.status().unwrap().success());
        let [new, old] = ["new", "old"].map(|name| folder.path().join(name));
        trial(Some(&program), &new, &old, bytes, &mut Quiet { cancelled }).map_err(|e| e.to_string())
    }

    #[test]
    fn a_model_that_runs_no_more_is_an_error() {
        let only_old = r#"case "$2" in */old) exit 0;; esac; echo broken >&2; exit 1"#;
        let error = with(only_old, 1, false).unwrap_err();
        assert!(error.contains("broken") && error.contains("not written"), "{error}");
    }

    #[test]
    fn others_are_not() {
        assert_eq!(with("exit 0", 1, false), Ok(Trial::Runs));
        assert_eq!(with("exit 3", 1, false), Ok(Trial::NotPossible));
        assert_eq!(with("echo no >&2; exit 1", 1, false), Ok(Trial::NeitherRuns("no".into())));
        for script in ["echo std::bad_alloc >&2; exit 1", "echo memory allocation of 9 bytes failed >&2; kill -ABRT $$"]
        {
            assert!(matches!(with(script, 1, false), Ok(Trial::NotAffordable(_))), "{script}");
        }
        let killed = with("kill -SEGV $$", 1, false).unwrap();
        assert!(matches!(&killed, Trial::NeitherRuns(why) if why.contains("signal: 11")), "{killed:?}");
        assert_eq!(
            trial(None, Path::new("a"), Path::new("b"), 1, &mut Quiet { cancelled: false }).unwrap(),
            Trial::NotPossible
        );
    }

    #[test]
    fn nothing_is_started_for_a_model_that_is_too_large() {
        let outcome = with("exit 0", LARGEST + 1, false).unwrap();
        assert!(matches!(&outcome, Trial::NotAffordable(why) if why.contains("too large")), "{outcome:?}");
    }

    #[test]
    fn a_trial_ends_when_the_caller_cancels() {
        let begin = Instant::now();
        let error = with("exec sleep 20", 1, true).unwrap_err();
        assert!(error.contains("cancelled") && begin.elapsed() < Duration::from_secs(10), "{error}");
    }
}
