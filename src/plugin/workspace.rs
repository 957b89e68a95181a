//! Scratch memory of kernels between launches: one allocation per stream, which only grows until memory is short.

use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::{Arc, Mutex, PoisonError, TryLockError};

use super::driver::{Driver, Handle};

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
    /// If the driver has no memory, even after `trim`, if it is given, has returned some.
    pub fn with<R>(
        &self,
        (driver, ordinal): (&dyn Driver, i32),
        stream: Handle,
        bytes: usize,
        trim: Option<impl FnOnce()>,
        work: impl FnOnce(*mut c_void) -> R,
    ) -> Result<R, String> {
        let workspace = {
            let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(all.entry(stream as usize).or_default())
        };
        let mut workspace = workspace.lock().unwrap_or_else(PoisonError::into_inner);
        if workspace.bytes < bytes {
            workspace.clear((driver, ordinal));
            let allocated = driver.allocate(ordinal, bytes).or_else(|why| {
                trim.ok_or(why)?();
                driver.allocate(ordinal, bytes)
            })?;
            workspace.address = allocated as usize;
            workspace.bytes = bytes;
        }
        Ok(work(workspace.address as *mut c_void))
    }

    /// Gives back the workspaces of streams that queue nothing at this moment.
    pub fn release(&self, device: (&dyn Driver, i32)) {
        for workspace in self.0.lock().unwrap_or_else(PoisonError::into_inner).values() {
            match workspace.try_lock() {
                Ok(mut idle) => idle.clear(device),
                Err(TryLockError::Poisoned(idle)) => idle.into_inner().clear(device),
                Err(TryLockError::WouldBlock) => (),
            }
        }
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
