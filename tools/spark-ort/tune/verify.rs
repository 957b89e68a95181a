//! Measures the recipe and its uniform rivals as `eval` does.

use std::path::Path;

use anyhow::Result;
use spark_ort::eval::{Estimate, Feeding, Passage, divergence_change};
use spark_ort::rewrite::{LayerSetting, Workbench};
use spark_ort::runtime::load;

use super::args::Args;
use super::variants::Variant;
use crate::eval::candidate::Candidate;
use crate::eval::measure::{Measurement, Read};
use crate::eval::report::{Report, Row};
use crate::eval::texts::Text;
use crate::interrupt::Interrupt;

/// The name of the recipe's row.
pub const RECIPE: &str = "recipe";

/// What was found.
pub struct Verified {
    pub report: Report,
    /// The best uniform variant, and by how much the recipe's divergence differs from its own, in nats; if all was
    /// measured and there is one.
    pub best: Option<(usize, Estimate)>,
}

/// Measures the original, the recipe, and each of `uniform` in all layers.
pub fn verify(
    args: &Args,
    workbench: &mut Workbench,
    original: &Candidate,
    (recipe, uniform): (&[LayerSetting], &[Variant]),
    passages: Vec<Passage>,
    interrupt: &Interrupt,
) -> Result<Verified> {
    let needed = args.context + args.verify_decode + 1;
    // Recent keys are inputs here, so that the buffer needs no rows for them.
    let feeding = Feeding { capacity: Some(needed), chunk: None };
    let text = Text { context: args.context, passages, task: None, feeding };
    let read = Read { texts: vec![text], questions: Vec::new() };
    let mut report = Report {
        original: args.original.clone(),
        onnxruntime: load()?.version().into(),
        text: Some(args.text.clone()),
        decode: args.verify_decode,
        shared_buffer: true,
        capacity: Some(needed),
        chunk: None,
        threads: args.temporary.threads,
        rows: Vec::new(),
        answers: Vec::new(),
        absent: Vec::new(),
        interrupted: false,
    };
    let mut models = vec![(RECIPE.to_string(), recipe.to_vec())];
    models.extend(uniform.iter().map(|variant| (variant.name(), vec![variant.setting.clone(); recipe.len()])));
    let mut measurement = Measurement::new(&read, 1 + models.len(), 0, args.temporary.threads, interrupt)?;
    measurement.original(original, &mut report)?;
    for (name, settings) in models {
        if interrupt.is_set() {
            break;
        }
        let (file, inspection) = workbench.write("verified.onnx", &settings)?;
        measurement.candidate(&Candidate::rewritten(name, file.clone(), inspection), &mut report)?;
        std::fs::remove_file(&file)?;
    }
    report.interrupted = interrupt.is_set();
    let best = if report.interrupted { None } else { best(&report, uniform) };
    Ok(Verified { report, best })
}

fn best(report: &Report, uniform: &[Variant]) -> Option<(usize, Estimate)> {
    let row = |name: &str| report.rows.iter().find(|row| row.described.name == name);
    let rows = uniform.iter().enumerate().filter_map(|(index, variant)| Some((index, row(&variant.name())?)));
    let error = |row: &Row| row.summary.divergence.value;
    let (index, best) = rows.min_by(|(_, a), (_, b)| error(a).total_cmp(&error(b)))?;
    Some((index, divergence_change(&row(RECIPE)?.scores, &best.scores)?))
}

/// Passages of a text for measuring and for verifying: the latter are spread between the former.
pub fn split(passages: Vec<Passage>, measured: usize) -> (Vec<Passage>, Vec<Passage>) {
    let count = passages.len();
    let is_measured = |place: usize| (0..measured).any(|k| (2 * k + 1) * count / (2 * measured) == place);
    let (mut first, mut second) = (Vec::new(), Vec::new());
    for (place, passage) in passages.into_iter().enumerate() {
        if is_measured(place) { first.push(passage) } else { second.push(passage) }
    }
    (first, second)
}

/// The name of a text in a recipe.
pub fn text_name(text: &Path) -> String {
    text.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passages_are_shared_out() {
        let passage = |number: i64| Passage { prompt: vec![number], next: Vec::new() };
        let numbers = |passages: &[Passage]| passages.iter().map(|p| p.prompt[0]).collect::<Vec<_>>();
        let (measured, verified) = split((0..6).map(passage).collect(), 2);
        assert_eq!((numbers(&measured), numbers(&verified)), (vec![1, 4], vec![0, 2, 3, 5]));
        let (measured, verified) = split((0..3).map(passage).collect(), 3);
        assert_eq!((numbers(&measured), verified.len()), (vec![0, 1, 2], 0));
    }
}
