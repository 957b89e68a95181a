//! Where parallel work runs.

/// Something that runs independent pieces of work, usually several at a time.
pub trait Pool {
    /// Calls `work(0)`, …, `work(n - 1)`, each once, in any order and from any thread, and returns when all are done.
    ///
    /// # Panics
    /// If one of them does.
    fn par_for(&self, n: usize, work: &(dyn Fn(usize) + Sync));
}

/// Runs work on the calling thread.
#[derive(Clone, Copy, Debug, Default)]
pub struct Serial;

impl Pool for Serial {
    fn par_for(&self, n: usize, work: &(dyn Fn(usize) + Sync)) {
        (0..n).for_each(work);
    }
}
