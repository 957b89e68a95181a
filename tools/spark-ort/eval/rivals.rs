//! Measures rivals on the same passages.

use anyhow::{Context, Result};
use spark_ort::eval::rivals::{Method, Rival, Scales, probe_model, quantised_model, simulate};
use spark_ort::eval::{Timing, TokenScore};
use spark_ort::runtime::{Model, Options};

use super::candidate::{Candidate, Kind};
use super::described::Described;
use super::measure::{Measurement, Stop, compared};
use super::report::{Absent, Report, Row};

/// Measures rivals on the original, after the models.
pub fn measure(
    measurement: &mut Measurement,
    original: &Candidate,
    rivals: &[Rival],
    report: &mut Report,
) -> Result<()> {
    let (simulated, native): (Vec<Rival>, Vec<Rival>) = rivals.iter().partition(|rival| rival.is_simulated());
    if !native.is_empty() && !measurement.interrupt.is_set() {
        measure_native(measurement, original, &native, report)?;
    }
    if !simulated.is_empty() && !measurement.interrupt.is_set() {
        measure_simulated(measurement, original, &simulated, report)?;
    }
    Ok(())
}

/// GroupQueryAttention's own quantised caches, calibrated on the first prompt.
fn measure_native(
    measurement: &mut Measurement,
    original: &Candidate,
    rivals: &[Rival],
    report: &mut Report,
) -> Result<()> {
    let Some(scales) = scales(measurement, original)? else { return Ok(()) };
    for rival in rivals {
        let Method::OnnxRuntime { bits } = rival.method else { continue };
        let folder = tempfile::tempdir().context("cannot create a temporary folder")?;
        let file = folder.path().join("model.onnx");
        let outcome = quantised_model(&original.file, &file, &original.inspection.interface, bits, &scales)
            .map_err(anyhow::Error::from)
            .and_then(|interface| {
                let mut inspection = original.inspection.clone();
                inspection.bytes_per_token = interface.bytes_per_token();
                inspection.interface = interface;
                let name = rival.to_string();
                let candidate = Candidate::temporary(name, Kind::OnnxRuntime, file, inspection, folder);
                measurement.candidate(&candidate, report)
            });
        // Older versions do not have it.
        if let Err(error) = outcome {
            report.absent.push(Absent { name: rival.to_string(), why: format!("{error:#}") });
        }
    }
    Ok(())
}

/// Largest magnitudes of the original's cache after the first prompt. `None` if interrupted.
fn scales(measurement: &Measurement, original: &Candidate) -> Result<Option<Scales>> {
    let interface = &original.inspection.interface;
    let mut model = Model::open(&original.file, interface, &Options { threads: measurement.threads })?;
    measurement.interrupt.watch(model.canceller());
    let first = &measurement.texts[0];
    match first.feeding.prompt(&mut model, &first.passages[0].prompt) {
        Ok((sequence, _)) => Ok(Some(Scales::measure(&sequence, interface)?)),
        Err(_) if measurement.interrupt.is_set() => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// One rival's scores of the passages of one length.
#[derive(Default)]
struct Scored {
    scores: Vec<Vec<TokenScore>>,
    timing: Timing,
    /// Why it cannot be simulated.
    problem: Option<String>,
}

/// Prompts are read once and as a whole, whatever the chunks of other models: each rival starts from the same cache.
fn measure_simulated(
    measurement: &mut Measurement,
    original: &Candidate,
    rivals: &[Rival],
    report: &mut Report,
) -> Result<()> {
    let folder = tempfile::tempdir().context("cannot create a temporary folder")?;
    let projections = rivals.iter().any(Rival::needs_projections);
    let probe =
        probe_model(&original.file, folder.path(), projections).context("the original with its queries as outputs")?;
    let interface = &original.inspection.interface;
    let mut model = Model::open(&probe.path, interface, &Options { threads: measurement.threads })?;
    measurement.interrupt.watch(model.canceller());
    let mut index = 0;
    for text in measurement.texts {
        measurement.progress.say(format!("{} rivals: {}", rivals.len(), text.title()));
        let mut scored: Vec<Scored> = rivals.iter().map(|_| Scored::default()).collect();
        for passage in &text.passages {
            let prompt = match probe.read(&mut model, &passage.prompt, text.feeding.capacity) {
                Err(_) if measurement.interrupt.is_set() => break,
                prompt => prompt?,
            };
            for (rival, scored) in rivals.iter().zip(&mut scored) {
                if let Some(why) = prompt.obstacle(rival, interface.layers[0].head_dim) {
                    scored.problem = Some(why);
                    continue;
                }
                let mut scores = Vec::new();
                let outcome = simulate(rival, &mut model, &prompt, passage, &mut |logits, token| {
                    scores.push(compared(&measurement.originals, index + scores.len(), logits, token)?);
                    measurement.progress.add_decoded(1);
                    Ok::<(), Stop>(())
                });
                match outcome {
                    Ok(timing) => {
                        scored.scores.push(scores);
                        scored.timing = scored.timing.plus(timing);
                    }
                    Err(Stop::Interrupted) => break,
                    Err(Stop::Failed(error)) => scored.problem = Some(format!("{error:#}")),
                }
            }
            index += passage.decoded();
        }
        for (rival, scored) in rivals.iter().zip(scored) {
            let name = rival.to_string();
            if let Some(why) = scored.problem.filter(|_| report.absent.iter().all(|absent| absent.name != name)) {
                report.absent.push(Absent { name, why });
            } else {
                let described = Described::rival(rival, original);
                report.rows.extend(Row::new(described, text, scored.scores, scored.timing));
            }
        }
        if measurement.interrupt.is_set() {
            return Ok(());
        }
    }
    Ok(())
}
