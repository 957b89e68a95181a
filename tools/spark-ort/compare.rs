//! Compares two models: one generates, and the other predicts the same tokens.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use serde::Serialize;
use spark_ort::eval::{LogitStore, divergence};
use spark_ort::runtime::{greedy, memory};

use crate::continuation::{Generated, Task, generate};
use crate::decode;
use crate::model_files::ModelSource;
use crate::progress::Progress;
use crate::report::{Statistics, Table, bytes};

/// Logits go to disk, so that they do not count as the model's memory.
const TEMPORARY: &str = "the temporary file of logits";

/// The result of a comparison.
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
    /// For all next tokens.
    all: Agreement,
    /// For the token after the prompt.
    first: Agreement,
}

/// How two models' predictions agree.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
struct Agreement {
    tokens: usize,
    /// How often both rank the same token first.
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
    let mut logits = LogitStore::new().context(TEMPORARY)?;
    let mut choices = Vec::new();
    let original = generate(task, original, &mut |before, token| {
        choices.push(token);
        logits.push(before).context(TEMPORARY)
    })?;
    if original.statistics.interrupted {
        return Ok(Report { original, model: None });
    }
    // The original has been freed, and its memory must not count for the other model.
    memory::reset_peak();
    let model = predict(task, &choices, &logits)?;
    Ok(Report { original, model: Some(model) })
}

/// Feeds the original's choices to the task's model.
fn predict(task: &Task, choices: &[i64], originals: &LogitStore) -> Result<Compared> {
    let mut model = decode::open(&task.model, &task.settings)?;
    let [mut all, mut first] = [Agreement::default(); 2];
    let mut progress = None;
    let mut next = |logits: &[f32]| {
        let original = originals.row(all.tokens).context(TEMPORARY)?;
        if original.len() != logits.len() {
            bail!("the models have different vocabularies: {} and {} tokens", original.len(), logits.len());
        }
        all.add(&original, logits);
        if all.tokens == 1 {
            first = all;
            progress = Some(Progress::start(format!("predicting the same {} tokens", choices.len())));
        }
        Ok((all.tokens < originals.len()).then(|| choices[all.tokens - 1]))
    };
    let statistics = decode::extend(&mut model, &task.prompt, task.max_new_tokens, &task.settings, &mut next)?;
    Ok(Compared { model: task.model.file.clone(), statistics, all, first })
}

impl Report {
    pub fn interrupted(&self) -> bool {
        self.model.as_ref().is_none_or(|model| model.statistics.interrupted)
    }

    /// Lines for people.
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
    fn agreement_counts_and_averages() {
        let mut agreement = Agreement::default();
        agreement.add(&[1.0, 0.0], &[1.0, 0.0]);
        agreement.add(&[1.0, 0.0], &[0.0, 1.0]);
        assert_eq!((agreement.tokens, agreement.agreeing), (2, 1));
        assert!((agreement.mean_kl - divergence(&[1.0, 0.0], &[0.0, 1.0]) / 2.0).abs() < 1e-12);
    }
}
