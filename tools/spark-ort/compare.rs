//! Two models side by side: one generates, the other one predicts the same tokens.

use std::path::PathBuf;

use anyhow::{Result, bail};
use serde::Serialize;
use spark_ort::runtime::{greedy, memory};

use crate::decode;
use crate::generate::{Generated, Task, generate_with};
use crate::logits_file::{Reader, Writer};
use crate::model_files::ModelSource;
use crate::progress::Progress;
use crate::report::{Statistics, Table, bytes};

/// What a comparison found.
#[derive(Serialize)]
pub struct Report {
    original: Generated,
    /// None if the original was interrupted.
    model: Option<Compared>,
}

/// The other model.
#[derive(Serialize)]
struct Compared {
    model: PathBuf,
    statistics: Statistics,
    /// Of all next tokens.
    all: Agreement,
    /// Of the one after the prompt.
    first: Agreement,
}

/// How two models' predictions agree.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
struct Agreement {
    tokens: usize,
    /// How often the likeliest token is the same.
    agreeing: usize,
    /// KL(original || model) per token, in nats.
    mean_kl: f64,
}

impl Agreement {
    fn add(&mut self, original: &[f32], model: &[f32]) {
        let sum = self.mean_kl * self.tokens as f64 + divergence(original, model);
        self.tokens += 1;
        self.mean_kl = sum / self.tokens as f64;
        self.agreeing += usize::from(greedy(original) == greedy(model));
    }
}

/// Lets the original continue the task's prompt, then the task's model predict the same tokens.
pub fn run(task: &Task, original: &ModelSource) -> Result<Report> {
    let mut logits = Writer::new()?;
    let mut choices = Vec::new();
    let original = generate_with(task, original, &mut |before, token| {
        choices.push(token);
        logits.push(before)
    })?;
    if original.statistics.interrupted {
        return Ok(Report { original, model: None });
    }
    // The original is gone by now: its memory shall not count for the other one.
    memory::reset_peak();
    let model = predict(task, &choices, logits.finish()?)?;
    Ok(Report { original, model: Some(model) })
}

/// Feeds the task's model the original's choices.
fn predict(task: &Task, choices: &[i64], mut originals: Reader) -> Result<Compared> {
    let mut model = decode::open(&task.model, &task.settings)?;
    let [mut all, mut first] = [Agreement::default(); 2];
    let mut progress = None;
    let mut next = |logits: &[f32]| {
        let original = originals.next()?;
        if original.len() != logits.len() {
            bail!("the models have different vocabularies: {} and {} tokens", original.len(), logits.len());
        }
        all.add(&original, logits);
        if all.tokens == 1 {
            first = all;
            progress = Some(Progress::start(format!("predicting the same {} tokens", choices.len())));
        }
        Ok((originals.left() > 0).then(|| choices[all.tokens - 1]))
    };
    let statistics = decode::extend(&mut model, &task.prompt, task.max_new_tokens, &task.settings, &mut next)?;
    Ok(Compared { model: task.model.file.clone(), statistics, all, first })
}

/// KL(p || q) in nats of the distributions that two rows of logits stand for.
fn divergence(p: &[f32], q: &[f32]) -> f64 {
    let log_sum = |logits: &[f32]| {
        let most = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
        most + logits.iter().map(|&x| (f64::from(x) - most).exp()).sum::<f64>().ln()
    };
    let (p_sum, q_sum) = (log_sum(p), log_sum(q));
    let terms = p.iter().zip(q).map(|(&p, &q)| {
        let (p, q) = (f64::from(p) - p_sum, f64::from(q) - q_sum);
        // What never happens counts nothing, whatever the other model says of it.
        if p == f64::NEG_INFINITY { 0.0 } else { p.exp() * (p - q) }
    });
    // Rounding can make it slightly negative.
    terms.sum::<f64>().max(0.0)
}

impl Report {
    pub fn interrupted(&self) -> bool {
        self.model.as_ref().is_none_or(|model| model.statistics.interrupted)
    }

    /// Lines for a person.
    pub fn lines(&self) -> String {
        let Some(compared) = &self.model else {
            return self.original.statistics.lines();
        };
        let mut table = Table::new(&["original", "model", ""]);
        let (a, b) = (&self.original.statistics, &compared.statistics);
        let mut row = |name: &str, values: [Option<f64>; 2], format: &dyn Fn(f64) -> String| {
            let share = match values {
                [Some(a), Some(b)] if a > 0.0 => format!("{:.1} %", 100.0 * b / a),
                _ => String::new(),
            };
            let cell = |value: Option<f64>| value.map_or("-".into(), format);
            table.row(name, vec![cell(values[0]), cell(values[1]), share]);
        };
        let both = |of: &dyn Fn(&Statistics) -> Option<f64>| [of(a), of(b)];
        let size = |x: f64| bytes(x as u64);
        let rate = |x: f64| format!("{x:.1}");
        row("cache, bytes per token", both(&|s| Some(s.cache_bytes_per_token as f64)), &|x| format!("{x}"));
        row("cache at the end", both(&|s| Some(s.cache_bytes as f64)), &size);
        row("prompt, tokens/s", both(&Statistics::prompt_rate), &rate);
        row("decode, tokens/s", both(&Statistics::decode_rate), &rate);
        row("peak memory", both(&|s| s.peak_memory_bytes.map(|m| m as f64)), &size);
        let mut text = if b.interrupted { String::from("interrupted\n") } else { String::new() };
        text += &table.lines();
        for (name, agreement) in [("all next tokens", compared.all), ("the first one", compared.first)] {
            if agreement.tokens > 0 {
                let Agreement { tokens, agreeing, mean_kl } = agreement;
                let share = 100.0 * agreeing as f64 / tokens as f64;
                text += &format!(
                    "{name}: {share:.1} % agree ({agreeing}/{tokens}), mean KL divergence {mean_kl:.4} nats\n"
                );
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn divergence_is_that_of_the_distributions() {
        let [p, q] = [[0.5f32, 0.25, 0.25], [0.25f32, 0.5, 0.25]].map(|p| p.map(f32::ln));
        let expected = 0.5 * 2f64.ln() + 0.25 * 0.5f64.ln();
        assert!((divergence(&p, &q) - expected).abs() < 1e-6);
        // Only differences of logits count.
        assert!((divergence(&p.map(|x| x + 90.0), &q) - expected).abs() < 1e-5);
        assert_eq!(divergence(&p, &p), 0.0);
        let impossible = [0.0, f32::NEG_INFINITY];
        assert!((divergence(&impossible, &[0.0, 0.0]) - 2f64.ln()).abs() < 1e-9);
        assert_eq!(divergence(&[0.0, 0.0], &impossible), f64::INFINITY);
    }

    #[test]
    fn agreement_counts_and_averages() {
        let mut agreement = Agreement::default();
        agreement.add(&[1.0, 0.0], &[1.0, 0.0]);
        agreement.add(&[1.0, 0.0], &[0.0, 1.0]);
        assert_eq!((agreement.tokens, agreement.agreeing), (2, 1));
        assert!((agreement.mean_kl - divergence(&[1.0, 0.0], &[0.0, 1.0]) / 2.0).abs() < 1e-12);
    }
}
