//! Cancelling a call from another thread.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use ort::session::RunOptions;

/// Makes the calls of a model return [`super::Error::Cancelled`]; usable from any thread, such as a Ctrl-C handler's.
/// ONNX Runtime checks between two nodes of the graph, so a call ends when its current node does.
#[derive(Clone)]
pub struct Canceller {
    cancelled: Arc<AtomicBool>,
    options: Arc<RunOptions>,
}

impl Canceller {
    pub(super) fn new() -> ort::Result<Self> {
        Ok(Self { cancelled: Arc::default(), options: Arc::new(RunOptions::new()?) })
    }

    /// Cancels the running call, if any, and every later one.
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::SeqCst);
        // This only sets a flag, which cannot fail.
        self.options.terminate().ok();
    }

    /// Whether [`Self::cancel`] has been called.
    pub fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::SeqCst)
    }

    pub(super) fn options(&self) -> &RunOptions {
        &self.options
    }
}
