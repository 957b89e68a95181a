//! ONNX Runtime's own thread pool as a [`Pool`].

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Mutex;

use ort::operator::ComputeContext;

use crate::cpu::Pool;

/// The intra-op pool of the session that a kernel runs in.
pub(super) struct OrtPool<'a>(&'a ComputeContext);

impl<'a> OrtPool<'a> {
    pub(super) fn new(context: &'a ComputeContext) -> Self {
        Self(context)
    }
}

impl Pool for OrtPool<'_> {
    fn par_for(&self, n: usize, work: &(dyn Fn(usize) + Sync)) {
        if n <= 1 {
            return (0..n).for_each(work);
        }
        // A panic may not unwind through the pool's C++ frames: it is carried to the calling thread.
        let panic = Mutex::new(None);
        let guarded = |i| {
            if let Err(payload) = catch_unwind(AssertUnwindSafe(|| work(i))) {
                *panic.lock().unwrap() = Some(payload);
            }
        };
        let result = self.0.par_for(n, 0, guarded);
        if let Some(payload) = panic.into_inner().unwrap() {
            resume_unwind(payload);
        }
        result.unwrap_or_else(|e| panic!("ONNX Runtime's thread pool took no work: {e}"));
    }
}
