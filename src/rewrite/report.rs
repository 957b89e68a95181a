//! The report of a finished rewrite, and the output of `inspect` for any model.

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::inspect::Inspection;
use super::rows::Rows;
use crate::format::Planes;

/// What was done.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Where the rewritten model is; `None` after a dry run.
    #[serde(serialize_with = "crate::json_path::any_path")]
    pub output: Option<PathBuf>,
    /// The rewritten model.
    pub model: Inspection,
    /// What to be careful with.
    pub warnings: Vec<String>,
    /// What to add to the host program.
    pub host: String,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.output {
            Some(path) => writeln!(f, "written      {}", path.display())?,
            None => writeln!(f, "dry run: nothing was written; the model would be")?,
        }
        write!(f, "{}", self.model)?;
        for warning in &self.warnings {
            writeln!(f, "warning      {warning}")?;
        }
        writeln!(f, "host         {}", self.host)
    }
}

/// "2 to 4", or "4".
fn range(mut numbers: Vec<usize>) -> String {
    numbers.sort_unstable();
    match (numbers.first(), numbers.last()) {
        (Some(a), Some(b)) if a != b => format!("{a} to {b}"),
        (Some(a), _) => a.to_string(),
        _ => "no".into(),
    }
}

/// The rows of one layer.
fn described(rows: &Rows) -> String {
    if rows.have_basis() {
        let planes = rows.planes.map_or(String::new(), |planes| {
            let Planes { eight, four, two } = planes;
            format!(" of {} directions: {eight} at 8 bits, {four} at 4, {two} at 2", rows.head_dim)
        });
        return format!(
            "keys in a calibrated basis{planes}; values at {} bits; {} + {} bytes per token and KV head",
            rows.value_bits, rows.key_row_bytes, rows.value_row_bytes
        );
    }
    format!(
        "ratio {}: {} of {} key channels at {} bits, values at {} bits{}; {} + {} bytes per token and KV head",
        rows.ratio,
        rows.kept_channels,
        rows.head_dim,
        rows.key_bits,
        rows.value_bits,
        if rows.row_format > 1 { format!(", row format {}", rows.row_format) } else { String::new() },
        rows.key_row_bytes,
        rows.value_row_bytes
    )
}

/// A line for each run of layers with equal rows.
fn by_layer(rows: &[Rows]) -> String {
    let mut text = String::new();
    let mut first = 0;
    for run in rows.chunk_by(|a, b| a == b) {
        let layers = match run.len() {
            1 => first.to_string(),
            many => format!("{first} to {}", first + many - 1),
        };
        text += &format!("\n  {layers:<10} {}", described(&run[0]));
        first += run.len();
    }
    text
}

impl fmt::Display for Inspection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let layers = &self.interface.layers;
        let heads = range(self.query_heads.clone());
        let kv_heads = range(layers.iter().map(|l| l.kv_heads).collect());
        writeln!(f, "layers       {} of {}", layers.len(), self.source)?;
        writeln!(f, "heads        {heads} query, {kv_heads} KV, head size {}", self.heads().1)?;
        let Some(rows) = &self.rows else {
            return writeln!(f, "cache        {} bytes per token, not compressed", self.bytes_per_token);
        };
        let share = 100.0 * self.bytes_per_token as f64 / self.original_bytes_per_token as f64;
        let before = self.original_bytes_per_token;
        writeln!(f, "cache        {} bytes per token, {share:.1} % of {before} before", self.bytes_per_token)?;
        match self.layer_rows.is_empty() {
            true => write!(f, "rows         {}", described(rows))?,
            false => write!(f, "rows         by layer{}", by_layer(&self.layer_rows))?,
        }
        let recent = if self.layer_rows.is_empty() { "; " } else { "\n             " };
        match (rows.recent_window, rows.tail_window) {
            (0, 0) => writeln!(f)?,
            (0, n) => writeln!(f, "{recent}the last {n} keys also dense, in free rows of a shared buffer")?,
            (n, _) => writeln!(f, "{recent}the last {n} keys also dense ({} bytes)", self.recent_bytes)?,
        }
        match &self.calibration {
            Some(text) => writeln!(f, "calibration  {text}"),
            None => writeln!(f, "calibration  none: query_saliency is all ones"),
        }
    }
}
