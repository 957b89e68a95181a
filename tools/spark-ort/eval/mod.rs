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
use crate::report::publish;
use crate::terminal::note;
pub use args::Args;
use args::once;
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
    args.check_room([&original].into_iter().chain(&given).map(|model| &model.inspection.interface))?;
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
    if report.interrupted && report.is_empty() {
        return Ok(interrupt::nothing_measured());
    }
    publish(args.json.as_deref(), &report, || report.lines())?;
    args.plot.as_deref().map_or(Ok(()), |path| plot::write(path, &report))?;
    if report.interrupted {
        note("interrupted: what is missing was not measured\n");
    }
    Ok(interrupt::status(report.interrupted))
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
    let rivals = once(args.rivals.iter().flat_map(|rivals| rivals.0.clone()));
    let settings = once(args.settings.iter());
    let simulated = rivals.iter().filter(|rival| rival.is_simulated()).count();
    let models = 1 + given.len() + settings.len() + rivals.len() - simulated;
    let mut measurement = Measurement::new(read, models, simulated, args.temporary.threads, interrupt)?;
    measurement.original(original, report)?;
    for model in given {
        measurement.candidate(model, report)?;
    }
    for setting in settings {
        if interrupt.is_set() {
            break;
        }
        let candidate = measurement.pause(|| rewriter.rewrite(setting))?;
        measurement.candidate(&candidate, report)?;
    }
    rivals::measure(&mut measurement, original, &rivals, report)
}

#[cfg(test)]
mod tests {
    use spark_ort::eval::rivals::Rival;

    #[test]
    fn what_is_named_twice_is_measured_once() {
        let rivals = ["int8", "ort-int4+3", "int8+64", "int4", "ort-int4"].map(|name| name.parse::<Rival>().unwrap());
        let names: Vec<_> = super::once(rivals.iter()).iter().map(ToString::to_string).collect();
        assert_eq!(names, ["int8+64", "ort-int4", "int4+64"]);
    }
}
