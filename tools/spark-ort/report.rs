//! Figures, for people and as JSON.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::Result;
use serde::Serialize;

use crate::terminal::show;
use crate::whole_file;

/// Figures of one model.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Statistics {
    pub prompt_tokens: usize,
    pub prompt_seconds: f64,
    /// Tokens fed one by one after the prompt.
    pub decoded_tokens: usize,
    pub decode_seconds: f64,
    /// Tokens in the cache at the end.
    pub cache_tokens: usize,
    /// Their bytes, recent keys included.
    pub cache_bytes: usize,
    /// The same, including unused rows.
    pub cache_bytes_allocated: usize,
    /// Bytes that another token takes.
    pub cache_bytes_per_token: usize,
    pub shared_buffer: bool,
    /// Of the whole process; None if the system does not report it.
    pub peak_memory_bytes: Option<u64>,
    pub interrupted: bool,
}

impl Statistics {
    /// None if the prompt was not read.
    pub fn prompt_rate(&self) -> Option<f64> {
        let was_read = self.cache_tokens >= self.prompt_tokens;
        rate(self.prompt_tokens, self.prompt_seconds).filter(|_| was_read)
    }

    /// None if no token was decoded.
    pub fn decode_rate(&self) -> Option<f64> {
        rate(self.decoded_tokens, self.decode_seconds)
    }

    /// Lines for people.
    pub fn lines(&self) -> String {
        let mut text = String::new();
        let seconds = |seconds: f64| format!("{seconds:.2} s");
        let prompt = match self.prompt_rate() {
            Some(rate) => format!("{}, {rate:.1} tokens/s", seconds(self.prompt_seconds)),
            None => format!("interrupted after {}", seconds(self.prompt_seconds)),
        };
        // Writing to a string cannot fail.
        if self.interrupted {
            let _ = writeln!(text, "interrupted");
        }
        let _ = writeln!(text, "prompt       {} tokens, {prompt}", self.prompt_tokens);
        if let Some(rate) = self.decode_rate() {
            let (tokens, seconds) = (self.decoded_tokens, seconds(self.decode_seconds));
            let _ = writeln!(text, "decode       {tokens} tokens, {seconds}, {rate:.1} tokens/s");
        }
        let buffer = match self.shared_buffer {
            true => format!("one buffer of {}", bytes(self.cache_bytes_allocated as u64)),
            false => "growing".into(),
        };
        let held = bytes(self.cache_bytes as u64);
        let each = self.cache_bytes_per_token;
        let _ = writeln!(text, "cache        {} tokens, {held}, {each} bytes per token ({buffer})", self.cache_tokens);
        if let Some(peak) = self.peak_memory_bytes {
            let _ = writeln!(text, "peak memory  {}", bytes(peak));
        }
        text
    }
}

fn rate(tokens: usize, seconds: f64) -> Option<f64> {
    (tokens > 0 && seconds > 0.0).then(|| tokens as f64 / seconds)
}

/// Rows with a name and one cell per column, aligned.
pub struct Table(Vec<(String, Vec<String>)>);

impl Table {
    pub fn new(columns: &[&str]) -> Self {
        let mut table = Self(Vec::new());
        table.row("", columns.iter().map(|c| c.to_string()).collect());
        table
    }

    pub fn row(&mut self, name: &str, cells: Vec<String>) {
        self.0.push((name.into(), cells));
    }

    pub fn lines(&self) -> String {
        let first = self.0.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
        let widest =
            |column: usize| self.0.iter().filter_map(|(_, cells)| cells.get(column)).map(|c| c.chars().count()).max();
        let mut text = String::new();
        for (name, cells) in &self.0 {
            let _ = write!(text, "{name:first$}");
            for (column, cell) in cells.iter().enumerate() {
                let _ = write!(text, "  {cell:>width$}", width = widest(column).unwrap_or(0));
            }
            text.push('\n');
        }
        text
    }
}

/// A size in readable units.
pub fn bytes(size: u64) -> String {
    match size {
        0..1024 => format!("{size} B"),
        1024..1_048_576 => format!("{:.1} KiB", size as f64 / 1024.0),
        1_048_576..1_073_741_824 => format!("{:.1} MiB", size as f64 / 1_048_576.0),
        _ => format!("{:.2} GiB", size as f64 / 1_073_741_824.0),
    }
}

/// Shows the `text` of a report, and writes the report as JSON to the file `json`, if there is one; `-`, stdout, takes
/// it in place of the text.
///
/// # Errors
/// Stdout is closed or full, or the file cannot be written.
pub fn publish(json: Option<&Path>, report: &impl Serialize, text: impl FnOnce() -> String) -> Result<()> {
    if !json.is_some_and(whole_file::is_stdout) {
        show(&text())?;
    }
    json.map_or(Ok(()), |path| write_json(path, report))
}

/// Writes a report to a file, or to stdout for `-`.
pub fn write_json(path: &Path, report: &impl Serialize) -> Result<()> {
    let mut text = serde_json::to_string_pretty(report)?;
    text.push('\n');
    whole_file::write_or_show(path, &text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_aligned() {
        let mut table = Table::new(&["one", "two"]);
        table.row("long name", vec!["1".into(), "12345".into()]);
        assert_eq!(table.lines(), "           one    two\nlong name    1  12345\n");
    }

    #[test]
    fn sizes_have_units() {
        let sizes = [0, 1023, 1536, 5 << 20, 3 << 30].map(bytes);
        assert_eq!(sizes, ["0 B", "1023 B", "1.5 KiB", "5.0 MiB", "3.00 GiB"]);
    }
}
