//! Progress of long work.

/// Receives progress and may cancel the work.
pub trait Progress {
    /// `done` of `total` parts of the work called `what` are done.
    fn step(&mut self, what: &str, done: usize, total: usize);

    /// Whether to stop without writing anything.
    fn cancelled(&self) -> bool {
        false
    }
}

/// No reports, no cancellation.
impl Progress for () {
    fn step(&mut self, _: &str, _: usize, _: usize) {}
}
