//! Progress on stderr: a spinner in a terminal, plain lines elsewhere.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use crate::terminal::{note, plain};

/// Shown until it is dropped.
pub struct Progress(ProgressBar);

impl Progress {
    /// Starts work of unknown length.
    pub fn start(what: String) -> Self {
        let bar = ProgressBar::new_spinner();
        if bar.is_hidden() {
            note(&format!("{what} ...\n"));
            return Self(bar);
        }
        bar.set_style(ProgressStyle::with_template("{spinner} {msg} [{elapsed}]").expect("a constant"));
        bar.set_message(plain(&what));
        bar.enable_steady_tick(Duration::from_millis(100));
        Self(bar)
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

/// Work in parts, shown as a bar.
#[derive(Default)]
pub struct Steps {
    bar: Option<(String, ProgressBar)>,
}

impl Steps {
    /// `done` of `total` parts of `what` are done.
    pub fn show(&mut self, what: &str, done: usize, total: usize) {
        if self.bar.as_ref().is_none_or(|(current, _)| current != what) {
            self.finish();
            let bar = ProgressBar::new(total as u64);
            if bar.is_hidden() {
                note(&format!("{what} ...\n"));
            } else {
                bar.set_style(
                    ProgressStyle::with_template("{msg} {bar:30} {pos}/{len} [{elapsed}]").expect("a constant"),
                );
                bar.set_message(plain(what));
                bar.enable_steady_tick(Duration::from_millis(100));
            }
            self.bar = Some((what.into(), bar));
        }
        if let Some((_, bar)) = &self.bar {
            bar.set_length(total as u64);
            bar.set_position(done as u64);
        }
    }

    fn finish(&mut self) {
        if let Some((_, bar)) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

impl Drop for Steps {
    fn drop(&mut self) {
        self.finish();
    }
}
