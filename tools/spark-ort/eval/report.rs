//! The results of a measurement, for people and as JSON.

use std::path::{Path, PathBuf};

use serde::Serialize;
use spark_ort::eval::{Estimate, Summary, Task, Timing, TokenScore};

use super::candidate::Kind;
use super::described::Described;
use super::questions::Answers;
use super::texts::Text;
use crate::report::Table;

/// Note below a table with simulated rivals.
const SIMULATED: &str = "
* dense simulation: the original's cache is rewritten between calls. Bytes are what the rival would store, with dense
  elements as float16; the first 4 tokens and the last N of +N stay dense and are not counted. What a rival needs to
  know of queries, or a basis of keys and values, is taken from each prompt itself.
";

/// Note below a table with ONNX Runtime's own caches.
const NATIVE: &str = "
ort-int8, ort-int4: ONNX Runtime's own cache, a scale for each channel, calibrated on the first prompt.
";

/// All results of a measurement.
#[derive(Serialize)]
pub struct Report {
    #[serde(serialize_with = "spark_ort::json_path::path")]
    pub original: PathBuf,
    pub onnxruntime: String,
    #[serde(serialize_with = "spark_ort::json_path::any_path")]
    pub text: Option<PathBuf>,
    /// Tokens decoded after each prompt.
    pub decode: usize,
    /// Past and present in one buffer, if the model allows it.
    pub shared_buffer: bool,
    pub capacity: Option<usize>,
    /// Prompt tokens that are read at once.
    pub chunk: Option<usize>,
    pub threads: Option<usize>,
    pub rows: Vec<Row>,
    /// Answers to questions.
    pub answers: Vec<Answers>,
    /// Rivals that cannot be measured with this model or ONNX Runtime.
    pub absent: Vec<Absent>,
    pub interrupted: bool,
}

/// What could not be measured, and why.
#[derive(Serialize)]
pub struct Absent {
    pub name: String,
    pub why: String,
}

/// A model or rival with prompts of one length.
#[derive(Serialize)]
pub struct Row {
    #[serde(flatten)]
    pub described: Described,
    /// Prompt length in tokens.
    pub context: usize,
    pub task: Option<Task>,
    pub passages: usize,
    pub shared_buffer: bool,
    #[serde(flatten)]
    pub summary: Summary,
    pub timing: Timing,
    /// Each prediction's, passage by passage.
    #[serde(skip)]
    pub scores: Vec<Vec<TokenScore>>,
}

impl Row {
    /// `None` without scores.
    pub fn new(described: Described, text: &Text, scores: Vec<Vec<TokenScore>>, timing: Timing) -> Option<Self> {
        let shared_buffer = text.feeding.capacity.is_some() && described.shares_buffer;
        let (passages, summary) = (scores.len(), Summary::new(&scores)?);
        let (context, task) = (text.context, text.task);
        Some(Self { described, context, task, passages, shared_buffer, summary, timing, scores })
    }
}

/// A value and its interval, with `digits` digits after the point.
pub fn interval(estimate: &Estimate, factor: f64, digits: usize) -> String {
    let [value, low, high] = [estimate.value, estimate.low, estimate.high].map(|x| x * factor);
    format!("{value:.digits$} ({low:.digits$} to {high:.digits$})")
}

fn rate(tokens: usize, seconds: f64) -> String {
    if tokens > 0 && seconds > 0.0 { format!("{:.1}", tokens as f64 / seconds) } else { "-".into() }
}

impl Report {
    /// The rows of each prompt length and task, in the order in which the original was measured.
    pub fn groups(&self) -> Vec<(usize, Option<Task>, Vec<&Row>)> {
        let mut groups: Vec<(usize, Option<Task>, Vec<&Row>)> = Vec::new();
        for row in &self.rows {
            match groups.iter_mut().find(|(context, task, _)| (*context, *task) == (row.context, row.task)) {
                Some((_, _, rows)) => rows.push(row),
                None => groups.push((row.context, row.task, vec![row])),
            }
        }
        groups
    }

    /// Whether nothing was measured.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty() && self.answers.is_empty()
    }

    /// A table for each prompt length.
    pub fn lines(&self) -> String {
        let mut text = String::new();
        for (context, task, rows) in self.groups() {
            let Some(first) = rows.first() else { continue };
            let buffer = if first.shared_buffer { "one buffer" } else { "growing caches" };
            let chunk = self.chunk.map_or(String::new(), |chunk| format!(" in chunks of {chunk}"));
            let (passages, tokens) = (first.passages, first.summary.tokens);
            let task = task.map_or(String::new(), |task| format!(" ({task})"));
            text += &format!(
                "\nPrompts of {context} tokens{task}{chunk}, {passages} passages, {tokens} tokens decoded, {buffer}\n"
            );
            let mut table = Table::new(&[
                "bytes/token",
                "share",
                "KL, nats",
                "99th percentile",
                if first.task.is_some() { "answered, %" } else { "same next token, %" },
                "loss",
                "decode, tokens/s",
                "prompt, tokens/s",
            ]);
            for row in &rows {
                table.row(&row.label(), row.cells(first));
            }
            text += &table.lines();
        }
        text += &self.scores();
        if self.rows.iter().any(|row| row.described.kind == Kind::Simulated) {
            text += SIMULATED;
            if !self.answers.is_empty() {
                text += "  They answer no questions.\n";
            }
        }
        if self.rows.iter().any(|row| row.described.kind == Kind::OnnxRuntime) {
            text += NATIVE;
        }
        for Absent { name, why } in &self.absent {
            text += &format!("\n{name} is absent: {why}\n");
        }
        text
    }
}

impl Report {
    /// A table for each data set of questions.
    fn scores(&self) -> String {
        let mut text = String::new();
        let mut done: Vec<(&Path, &str)> = Vec::new();
        for first in &self.answers {
            let set = (first.file.as_path(), first.dataset.as_str());
            if done.contains(&set) {
                continue;
            }
            done.push(set);
            text += &format!("\n{} ({}), {} questions\n", first.dataset, first.file.display(), first.questions);
            let mut table = Table::new(&["bytes/token", "share", "score, %", "decode, tokens/s"]);
            for answers in self.answers.iter().filter(|a| (a.file.as_path(), a.dataset.as_str()) == set) {
                let (described, timing) = (&answers.described, &answers.timing);
                let cells = vec![
                    format!("{:.0}", described.bytes_per_token),
                    format!("{:.3}", described.share),
                    interval(&answers.score, 100.0, 2),
                    rate(timing.decoded_tokens, timing.decode_seconds),
                ];
                table.row(&described.name, cells);
            }
            text += &table.lines();
        }
        text
    }
}

impl Row {
    /// The name, with a mark if it is only simulated.
    fn label(&self) -> String {
        let mark = if self.described.kind == Kind::Simulated { " *" } else { "" };
        format!("{}{mark}", self.described.name)
    }

    fn cells(&self, original: &Row) -> Vec<String> {
        let (summary, timing) = (&self.summary, &self.timing);
        let is_original = self.described.kind == Kind::Original;
        let simulated = self.described.kind == Kind::Simulated;
        let compared = |cell: String| if is_original { "-".into() } else { cell };
        let loss = match is_original {
            true => format!("{:.4}", original.summary.loss.value),
            false => {
                let change = &summary.loss_increase;
                format!("{:+.4} ({:+.4} to {:+.4})", change.value, change.low, change.high)
            }
        };
        vec![
            format!("{:.0}", self.described.bytes_per_token),
            format!("{:.3}", self.described.share),
            compared(interval(&summary.divergence, 1.0, 4)),
            compared(interval(&summary.divergence_p99, 1.0, 3)),
            match self.task {
                Some(_) => interval(&summary.answered, 100.0, 1),
                None => compared(interval(&summary.agreement, 100.0, 1)),
            },
            loss,
            if simulated { "-".into() } else { rate(timing.decoded_tokens, timing.decode_seconds) },
            rate(timing.prompt_tokens, timing.prompt_seconds),
        ]
    }
}
