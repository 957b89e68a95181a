//! What a measurement found, for people and as JSON.

use std::path::PathBuf;

use serde::Serialize;
use spark_ort::eval::{Estimate, Summary, Timing};

use super::candidate::{Candidate, Kind};
use super::texts::Text;
use crate::report::Table;

/// All of a measurement.
#[derive(Serialize)]
pub struct Report {
    pub original: PathBuf,
    pub onnxruntime: String,
    pub text: PathBuf,
    /// Tokens decoded after each prompt.
    pub decode: usize,
    /// Past and present in one buffer, where a model allows it.
    pub shared_buffer: bool,
    pub capacity: Option<usize>,
    /// Tokens of a prompt that are read at once.
    pub chunk: Option<usize>,
    pub threads: Option<usize>,
    pub rows: Vec<Row>,
    pub interrupted: bool,
}

/// A model with prompts of one length.
#[derive(Serialize)]
pub struct Row {
    pub name: String,
    pub kind: Kind,
    /// Tokens of a prompt.
    pub context: usize,
    pub passages: usize,
    /// Share of pruned key channels and bits, if it is rewritten.
    pub ratio: Option<f64>,
    pub key_bits: Option<u8>,
    pub value_bits: Option<u8>,
    /// What each token adds to the cache.
    pub bytes_per_token: usize,
    /// The same as a share of the original's.
    pub share: f64,
    /// Dense keys beside the rows, whose bytes do not grow.
    pub recent_bytes: usize,
    pub shared_buffer: bool,
    #[serde(flatten)]
    pub summary: Summary,
    pub timing: Timing,
}

impl Row {
    pub fn new(candidate: &Candidate, text: &Text, passages: usize, summary: Summary, timing: Timing) -> Self {
        let inspection = &candidate.inspection;
        let rows = inspection.rows.as_ref();
        Self {
            name: candidate.name.clone(),
            kind: candidate.kind,
            context: text.context,
            passages,
            ratio: rows.map(|rows| rows.ratio),
            key_bits: rows.map(|rows| rows.key_bits),
            value_bits: rows.map(|rows| rows.value_bits),
            bytes_per_token: inspection.bytes_per_token,
            share: inspection.bytes_per_token as f64 / inspection.original_bytes_per_token as f64,
            recent_bytes: inspection.recent_bytes,
            shared_buffer: text.feeding.capacity.is_some() && inspection.interface.shares_buffer,
            summary,
            timing,
        }
    }
}

/// A figure and its interval, with so many digits after the point.
fn interval(estimate: &Estimate, factor: f64, digits: usize) -> String {
    let [value, low, high] = [estimate.value, estimate.low, estimate.high].map(|x| x * factor);
    format!("{value:.digits$} ({low:.digits$} to {high:.digits$})")
}

fn rate(tokens: usize, seconds: f64) -> String {
    if tokens > 0 && seconds > 0.0 { format!("{:.1}", tokens as f64 / seconds) } else { "-".into() }
}

impl Report {
    /// A table for each length of prompts.
    pub fn lines(&self) -> String {
        let mut contexts: Vec<usize> = self.rows.iter().map(|row| row.context).collect();
        contexts.sort_unstable();
        contexts.dedup();
        let mut text = String::new();
        for context in contexts {
            let rows: Vec<&Row> = self.rows.iter().filter(|row| row.context == context).collect();
            let Some(first) = rows.first() else { continue };
            let buffer = if first.shared_buffer { "one buffer" } else { "growing caches" };
            let chunk = self.chunk.map_or(String::new(), |chunk| format!(" in chunks of {chunk}"));
            let (passages, tokens) = (first.passages, first.summary.tokens);
            text += &format!(
                "\nPrompts of {context} tokens{chunk}, {passages} passages, {tokens} tokens decoded, {buffer}\n"
            );
            let mut table = Table::new(&[
                "bytes/token",
                "share",
                "KL, nats",
                "99th percentile",
                "same next token, %",
                "loss",
                "decode, tokens/s",
                "prompt, tokens/s",
            ]);
            for row in &rows {
                table.row(&row.name, row.cells(first));
            }
            text += &table.lines();
        }
        if self.interrupted {
            text += "\ninterrupted: what is missing was not measured\n";
        }
        text
    }
}

impl Row {
    fn cells(&self, original: &Row) -> Vec<String> {
        let (summary, timing) = (&self.summary, &self.timing);
        let is_original = self.kind == Kind::Original;
        let compared = |cell: String| if is_original { "-".into() } else { cell };
        let loss = match is_original {
            true => format!("{:.4}", original.summary.loss.value),
            false => {
                let change = &summary.loss_increase;
                format!("{:+.4} ({:+.4} to {:+.4})", change.value, change.low, change.high)
            }
        };
        vec![
            self.bytes_per_token.to_string(),
            format!("{:.3}", self.share),
            compared(interval(&summary.divergence, 1.0, 4)),
            compared(interval(&summary.divergence_p99, 1.0, 3)),
            compared(interval(&summary.agreement, 100.0, 1)),
            loss,
            rate(timing.decoded_tokens, timing.decode_seconds),
            rate(timing.prompt_tokens, timing.prompt_seconds),
        ]
    }
}
