//! Scratch memory of kernels between launches: one allocation per stream, which only grows.

use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::{Arc, Mutex, PoisonError};

use super::driver::{Driver, Handle};
use super::pool::rounded;

/// The workspaces of a device's streams.
#[derive(Default)]
pub struct Workspaces(Mutex<HashMap<usize, Arc<Mutex<Workspace>>>>);

#[derive(Default)]
struct Workspace {
    address: usize,
    bytes: usize,
}

impl Workspaces {
    /// Runs `work`, which queues launches on `stream`, with `bytes` bytes for these launches. Threads that share a
    /// stream take turns: the workspace belongs to the stream, and work queued later on it may reuse the memory.
    ///
    /// # Errors
    /// If the driver has no memory.
    pub fn with<R>(
        &self,
        (driver, ordinal): (&dyn Driver, i32),
        stream: Handle,
        bytes: usize,
        work: impl FnOnce(*mut c_void) -> R,
    ) -> Result<R, String> {
        let workspace = {
            let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(all.entry(stream as usize).or_default())
        };
        let mut workspace = workspace.lock().unwrap_or_else(PoisonError::into_inner);
        if workspace.bytes < bytes {
            let bytes = rounded(bytes);
            workspace.clear((driver, ordinal));
            workspace.address = driver.allocate(ordinal, bytes)? as usize;
            workspace.bytes = bytes;
        }
        Ok(work(workspace.address as *mut c_void))
    }

    /// Forgets a stream that has run all its work and is destroyed.
    pub fn retire(&self, device: (&dyn Driver, i32), stream: Handle) {
        let workspace = self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&(stream as usize));
        if let Some(workspace) = workspace {
            workspace.lock().unwrap_or_else(PoisonError::into_inner).clear(device);
        }
    }
}

impl Workspace {
    fn clear(&mut self, (driver, ordinal): (&dyn Driver, i32)) {
        if self.bytes > 0 {
            // The driver waits for the device before it frees memory. After a fault it fails, and there is no one to
            // report that to.
            // SAFETY: the memory is from this driver, and only the caller, which holds the lock, could queue work with
            // it.
            let _ = unsafe { driver.free(ordinal, self.address as *mut c_void) };
        }
        *self = Self::default();
    }
}
