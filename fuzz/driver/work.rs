//! A process that runs mutants, and says before each which one.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;

use anyhow::{Context, Result};

use crate::common::Random;
use crate::targets::TARGETS;
use crate::{graph, mutate, weights};

/// Runs mutants `first` to `first + count` of a target.
///
/// # Errors
/// There is no such target, or its seeds cannot be read. A mutant that fails is a panic.
pub fn run(target: &str, seed: u64, first: u64, count: u64) -> Result<()> {
    let known = TARGETS.iter().find(|(name, _)| *name == target);
    let (_, act) = known.with_context(|| format!("there is no target {target}"))?;
    // Panics of the tokenizers' are caught and no failures: only the last one is of interest.
    static LAST: Mutex<String> = Mutex::new(String::new());
    std::panic::set_hook(Box::new(|info| *LAST.lock().unwrap_or_else(|e| e.into_inner()) = info.to_string()));
    let (seeds, mutate) = seeds(target)?;
    for number in first..first.saturating_add(count) {
        let mutant =
            mutate(&mut Random(seed.wrapping_mul(0x9e37_79b9) ^ number.wrapping_mul(0xd134_2543_de82_ef95)), &seeds);
        // Closed when the other process is gone.
        if std::io::stdout().write_all(&number.to_le_bytes()).and_then(|()| std::io::stdout().flush()).is_err() {
            return Ok(());
        }
        if std::panic::catch_unwind(|| act(&mutant)).is_err() {
            let _ = writeln!(std::io::stderr(), "{}", LAST.lock().unwrap_or_else(|e| e.into_inner()));
            std::process::exit(101);
        }
    }
    Ok(())
}

type Mutate = fn(&mut Random, &[Vec<u8>]) -> Vec<u8>;

/// The seeds of a target, and how to make mutants of them.
fn seeds(target: &str) -> Result<(Vec<Vec<u8>>, Mutate)> {
    let named = |name: &str| -> Result<Vec<Vec<u8>>> {
        let files = files(Path::new(env!("CARGO_MANIFEST_DIR")).join("graphs"))?;
        let wanted =
            |file: &&PathBuf| file.file_name().is_some_and(|n| n.to_string_lossy().trim_end_matches(".gz") == name);
        files.iter().filter(wanted).map(contents).collect()
    };
    Ok(match target {
        "model" => (named("model.onnx")?, graph::model),
        "difference" => {
            let models = named("model.onnx")?;
            let with_weights = models.iter().filter_map(|model| weights::lend(model).transpose());
            (with_weights.collect::<Result<_>>()?, graph::gentle)
        }
        "config" => (named("genai_config.json")?, mutate::json),
        "settings" => (
            [named("genai_config.json")?, named("config.json")?, named("generation_config.json")?].concat(),
            mutate::json,
        ),
        "tokenizer" => (named("tokenizer.json")?, mutate::json),
        _ => ((0..8).map(|seed| Random(seed).bytes(64)).collect(), mutate::bytes),
    })
}

fn files(folder: PathBuf) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        match path.is_dir() {
            true => found.extend(files(path)?),
            false => found.push(path),
        }
    }
    // The same order everywhere.
    found.sort();
    Ok(found)
}

fn contents(file: &PathBuf) -> Result<Vec<u8>> {
    if file.extension().is_none_or(|e| e != "gz") {
        return Ok(std::fs::read(file)?);
    }
    let done = Command::new("gzip").arg("-dc").arg(file).stdin(Stdio::null()).output().context("gzip is needed")?;
    Ok(done.stdout)
}
