//! `spark-ort eval`: measures what a compressed cache costs a model.

mod args;
pub mod candidate;
mod described;
pub mod measure;
mod plot;
pub mod progress;
mod questions;
pub mod report;
mod rivals;
pub mod setting;
pub mod texts;

use std::process::ExitCode;

use anyhow::Result;
use spark_ort::rewrite::RewriteError;
use spark_ort::runtime::{FolderSettings, load};

use crate::interrupt::{self, Interrupt};
use crate::model_files::model_files;
use crate::report::write_json;
pub use args::Args;
use candidate::{Candidate, Kind, Rewriter};
use measure::{Measurement, Read};
use report::Report;

pub fn run(args: &Args) -> Result<ExitCode> {
    args.check()?;
    args.plot.as_deref().map_or(Ok(()), plot::check)?;
    let original = Candidate::given(&args.original, Kind::Original)?;
    let head_dim = original.inspection.heads().1;
    args.settings.iter().try_for_each(|setting| setting.rows("--settings", head_dim).map(drop))?;
    let given =
        args.rewritten.iter().map(|path| Candidate::given(path, Kind::Rewritten)).collect::<Result<Vec<_>>>()?;
    args.check_places(model_files([&original].into_iter().chain(&given).map(|model| &model.file))?)?;
    let tokenizer = texts::tokenizer(args.temporary.tokenizer.as_deref(), &original.file)?;
    let settings = FolderSettings::beside(&original.file)?;
    let texts = texts::read(args, &tokenizer, settings.context_length)?;
    let read = Read { texts, questions: questions::read(args, tokenizer, &settings)? };
    let interrupt = Interrupt::install()?;
    let mut report = Report {
        original: args.original.clone(),
        onnxruntime: load()?.version().into(),
        text: args.text.clone(),
        decode: args.decode,
        shared_buffer: args.shared_buffer,
        capacity: args.capacity,
        chunk: args.chunk,
        threads: args.temporary.threads,
        rows: Vec::new(),
        answers: Vec::new(),
        absent: Vec::new(),
        interrupted: false,
    };
    let outcome = measure_all(args, &original, &given, &read, &interrupt, &mut report);
    report.interrupted = interrupt.is_set();
    match outcome {
        // Ctrl-C also cancels a rewrite.
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
    args.plot.as_deref().map_or(Ok(()), |path| plot::write(path, &report))?;
    Ok(if report.interrupted { ExitCode::from(interrupt::EXIT_CODE) } else { ExitCode::SUCCESS })
}

pub fn is_cancelled(error: &(dyn std::error::Error + 'static)) -> bool {
    matches!(error.downcast_ref(), Some(RewriteError::Cancelled))
}

fn measure_all(
    args: &Args,
    original: &Candidate,
    given: &[Candidate],
    read: &Read,
    interrupt: &Interrupt,
    report: &mut Report,
) -> Result<()> {
    let rewriter = Rewriter {
        original: &args.original,
        in_buffer: args.shared_buffer && original.inspection.interface.shares_buffer,
        temporary: &args.temporary,
        interrupt,
    };
    let rivals = args.rivals.iter().flat_map(|rivals| rivals.0.clone()).collect::<Vec<_>>();
    let simulated = rivals.iter().filter(|rival| rival.is_simulated()).count();
    let models = 1 + given.len() + args.settings.len() + rivals.len() - simulated;
    let mut measurement = Measurement::new(read, models, simulated, args.temporary.threads, interrupt)?;
    measurement.original(original, report)?;
    for model in given {
        measurement.candidate(model, report)?;
    }
    for setting in &args.settings {
        if interrupt.is_set() {
            break;
        }
        let candidate = measurement.pause(|| rewriter.rewrite(setting))?;
        measurement.candidate(&candidate, report)?;
    }
    rivals::measure(&mut measurement, original, &rivals, report)
}
