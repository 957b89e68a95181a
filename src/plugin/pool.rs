//! Reuses device memory: the driver's own allocation functions wait for the device, so they should be called only in
//! the first steps of a session.
//!
//! Memory used on a stream returns to that stream's free list: work of the stream may still be queued when ONNX
//! Runtime frees the memory, and only later work on the same stream is certain to run after it.

use std::collections::{BTreeMap, HashMap};
use std::ffi::c_void;
use std::ptr::NonNull;
use std::sync::{Mutex, PoisonError};

use super::driver::{Driver, Handle};
use super::workspace::Workspaces;

/// Memory of one kind on one device.
pub struct Pool {
    driver: &'static dyn Driver,
    ordinal: i32,
    /// Whether it is host memory that the device can copy from and to.
    pinned: bool,
    state: Mutex<State>,
    workspaces: Workspaces,
}

/// A stream's address, 0 for none.
type StreamKey = usize;

#[derive(Default)]
struct State {
    /// Size of every block, and the stream that it was last given to.
    blocks: HashMap<usize, (usize, StreamKey)>,
    /// Free blocks: by stream, then size.
    free: HashMap<StreamKey, BTreeMap<usize, Vec<usize>>>,
}

/// `bytes` rounded up in steps of an eighth of its size, so that tensors that grow by one token per step mostly fit
/// the block of the previous step.
pub fn rounded(bytes: usize) -> usize {
    const LEAST: usize = 256;
    let step = (bytes.checked_next_power_of_two().unwrap_or(bytes) / 16).max(LEAST);
    bytes.max(1).div_ceil(step).saturating_mul(step)
}

impl State {
    /// The smallest free block from `stream`'s list that has `bytes` bytes, but not many more.
    fn take(&mut self, stream: StreamKey, bytes: usize) -> Option<usize> {
        /// Up to this size any block serves, so that a first decoding step takes what the prompt has left.
        const SMALL: usize = 256 << 10;
        let sizes = self.free.get_mut(&stream)?;
        let most = (bytes + bytes / 4).max(SMALL);
        let (&size, blocks) = sizes.range_mut(bytes..=most).find(|(_, blocks)| !blocks.is_empty())?;
        let block = blocks.pop()?;
        if blocks.is_empty() {
            sizes.remove(&size);
        }
        Some(block)
    }
}

impl Pool {
    pub(super) fn new(driver: &'static dyn Driver, ordinal: i32, pinned: bool) -> Self {
        Self { driver, ordinal, pinned, state: Mutex::default(), workspaces: Workspaces::default() }
    }

    /// Memory of at least `bytes` bytes for work on `stream`, or without a stream if it is null.
    ///
    /// # Errors
    /// If the driver has none, even after all that nobody needs now has been returned to it.
    pub fn allocate(&self, bytes: usize, stream: Handle) -> Result<NonNull<c_void>, String> {
        let (bytes, stream) = (rounded(bytes), stream as StreamKey);
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        // Blocks without a stream are unused: the work that had them has finished.
        let kept = state.take(stream, bytes).or_else(|| state.take(0, bytes));
        let block = match kept {
            Some(block) => block,
            None => {
                let block = self.new_block(bytes).or_else(|_| {
                    self.give_back(&mut state);
                    self.new_block(bytes)
                })?;
                state.blocks.insert(block, (bytes, stream));
                block
            }
        };
        if let Some((_, owner)) = state.blocks.get_mut(&block) {
            *owner = stream;
        }
        NonNull::new(block as *mut c_void).ok_or_else(|| "the driver gave no memory".into())
    }

    fn new_block(&self, bytes: usize) -> Result<usize, String> {
        let allocate = if self.pinned { Driver::allocate_pinned } else { Driver::allocate };
        Ok(allocate(self.driver, self.ordinal, bytes)? as usize)
    }

    /// Takes memory back; ignores memory that is not a block of this pool.
    pub fn free(&self, memory: *mut c_void) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(&(bytes, stream)) = state.blocks.get(&(memory as usize)) {
            state.free.entry(stream).or_default().entry(bytes).or_default().push(memory as usize);
        }
    }

    /// Runs `work`, which queues launches on `stream`, with a workspace of `bytes` bytes for them.
    ///
    /// # Errors
    /// If the driver has no memory, unless it is `optional` even after all free blocks have been returned to it.
    pub fn with_workspace<R>(
        &self,
        stream: Handle,
        bytes: usize,
        optional: bool,
        work: impl FnOnce(*mut c_void) -> R,
    ) -> Result<R, String> {
        self.workspaces.with(
            (self.driver, self.ordinal),
            stream,
            rounded(bytes),
            (!optional).then_some(|| self.trim()),
            work,
        )
    }

    /// Called when a stream has run all its work and is destroyed: any stream may reuse its memory.
    pub fn retire(&self, stream: Handle) {
        self.workspaces.retire((self.driver, self.ordinal), stream);
        let stream = stream as StreamKey;
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        for (_, owner) in state.blocks.values_mut().filter(|(_, owner)| *owner == stream) {
            *owner = 0;
        }
        for (bytes, blocks) in state.free.remove(&stream).unwrap_or_default() {
            state.free.entry(0).or_default().entry(bytes).or_default().extend(blocks);
        }
    }

    /// Returns all free blocks to the driver, and the workspaces of streams that queue nothing at this moment.
    pub fn trim(&self) {
        self.give_back(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn give_back(&self, state: &mut State) {
        // Queued work may still use free blocks. After a fault nothing is queued, and freeing fails too.
        let _ = self.driver.synchronize(self.ordinal);
        for block in std::mem::take(&mut state.free).into_values().flat_map(BTreeMap::into_values).flatten() {
            state.blocks.remove(&block);
            let free = if self.pinned { Driver::free_pinned } else { Driver::free };
            // SAFETY: the block is from this pool's driver and free, and the device has run all queued work.
            let _ = unsafe { free(self.driver, self.ordinal, block as *mut c_void) };
        }
        self.workspaces.release((self.driver, self.ordinal));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_rounded_by_an_eighth_at_most() {
        for bytes in [0, 1, 255, 256, 257, 4096, 5000, 1 << 20, (1 << 20) + 1, 123_456_789] {
            let got = rounded(bytes);
            assert!(got >= bytes.max(1) && got.is_multiple_of(256), "{bytes}: {got}");
            assert!(got <= bytes + (bytes / 8).max(256), "{bytes}: {got}");
        }
        assert_eq!(rounded(usize::MAX), usize::MAX);
    }

    #[test]
    fn a_block_serves_smaller_requests_of_its_stream() {
        let mut state = State::default();
        let mut give = |stream, bytes: usize, block| {
            state.free.entry(stream).or_default().entry(bytes).or_default().push(block);
        };
        give(7, 40 << 10, 1);
        give(7, 2048, 2);
        give(7, 1 << 20, 3);
        give(8, 2048, 4);
        assert_eq!(state.take(7, 1024), Some(2));
        assert_eq!(state.take(7, 1024), Some(1));
        // Not the largest, and no other stream's.
        assert_eq!(state.take(7, 1024), None);
        assert_eq!(state.take(7, 900 << 10), Some(3));
        assert_eq!(state.take(8, 2048), Some(4));
    }
}
