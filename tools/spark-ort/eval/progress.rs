//! Progress and remaining time of a measurement.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::terminal::{note, plain};

/// A decoded token takes about as long as this many prompt tokens.
const DECODED: usize = 8;

/// A bar in a terminal, lines elsewhere. Its unit is prompt tokens.
pub struct Progress {
    bar: ProgressBar,
    total: usize,
    done: usize,
    start: Instant,
}

impl Progress {
    /// For `total` units, see [`work`].
    pub fn new(total: usize) -> Self {
        let bar = ProgressBar::new(total as u64);
        let style = ProgressStyle::with_template("{msg} {bar:30} {percent} % [{elapsed}, {eta} left]");
        bar.set_style(style.expect("a constant"));
        bar.enable_steady_tick(Duration::from_millis(200));
        Self { bar, total, done: 0, start: Instant::now() }
    }

    /// Shows what is measured now.
    pub fn say(&mut self, what: String) {
        if self.bar.is_hidden() {
            let left = match self.done {
                0 => String::new(),
                done => {
                    let rate = self.start.elapsed().as_secs_f64() / done as f64;
                    format!(", about {} s left", (rate * (self.total - done) as f64).round())
                }
            };
            note(&format!("{what}{left} ...\n"));
        }
        self.bar.set_message(plain(&what));
    }

    /// Adds completed work.
    pub fn add(&mut self, work: usize) {
        self.done = (self.done + work).min(self.total);
        self.bar.set_position(self.done as u64);
    }

    /// Adds decoded tokens.
    pub fn add_decoded(&mut self, tokens: usize) {
        self.add(work(0, tokens));
    }

    /// Hides the bar while `work` shows its own.
    pub fn pause<T>(&self, work: impl FnOnce() -> T) -> T {
        self.bar.suspend(work)
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// The work of reading a prompt and decoding, in prompt tokens.
pub fn work(prompt: usize, decoded: usize) -> usize {
    prompt + decoded * DECODED
}
