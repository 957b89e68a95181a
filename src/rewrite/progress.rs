//! Saying how far long work is.

/// Who is told of progress, and may end the work.
pub trait Progress {
    /// `done` of `total` parts of the work called `what` are done.
    fn step(&mut self, what: &str, done: usize, total: usize);

    /// Whether to end without writing anything.
    fn cancelled(&self) -> bool {
        false
    }
}

/// Nobody.
impl Progress for () {
    fn step(&mut self, _: &str, _: usize, _: usize) {}
}
