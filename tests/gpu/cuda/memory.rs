//! Device memory.

use std::ffi::c_void;

use super::driver::Address;
use super::{Cuda, Stream};

/// Device memory, freed when it goes.
pub struct Buffer<'c> {
    cuda: &'c Cuda,
    address: Address,
    bytes: usize,
}

impl Cuda {
    /// `bytes` bytes, of no particular content.
    pub fn memory(&self, bytes: usize) -> Result<Buffer<'_>, String> {
        self.enter()?;
        let mut address = 0;
        // SAFETY: the out pointer is valid.
        let status = unsafe { (self.driver.cuMemAlloc_v2)(&mut address, bytes.max(1)) };
        self.driver.check(status, || format!("cuMemAlloc of {bytes} bytes"))?;
        Ok(Buffer { cuda: self, address, bytes })
    }

    /// Memory with `bytes` in it.
    pub fn memory_of(&self, bytes: &[u8]) -> Result<Buffer<'_>, String> {
        let buffer = self.memory(bytes.len())?;
        buffer.write(0, bytes)?;
        Ok(buffer)
    }
}

impl Buffer<'_> {
    pub fn address(&self) -> Address {
        self.address
    }

    /// Byte `at` of it, as kernels find it.
    pub fn at(&self, at: usize) -> *mut c_void {
        assert!(at <= self.bytes, "within the buffer");
        std::ptr::without_provenance_mut((self.address + at as u64) as usize)
    }

    pub fn len(&self) -> usize {
        self.bytes
    }

    /// Copies `bytes` to byte `at` of it.
    pub fn write(&self, at: usize, bytes: &[u8]) -> Result<(), String> {
        self.check_range(at, bytes.len());
        if bytes.is_empty() {
            return Ok(());
        }
        self.cuda.enter()?;
        // SAFETY: the range is within the buffer, as checked, and the host's bytes are as many.
        let status =
            unsafe { (self.cuda.driver.cuMemcpyHtoD_v2)(self.address + at as u64, bytes.as_ptr().cast(), bytes.len()) };
        self.cuda.driver.check(status, || format!("cuMemcpyHtoD of {} bytes", bytes.len()))
    }

    /// Copies `bytes` bytes from byte `at` of it.
    pub fn read(&self, at: usize, bytes: usize) -> Result<Vec<u8>, String> {
        self.check_range(at, bytes);
        let mut host = vec![0u8; bytes];
        if bytes > 0 {
            self.cuda.enter()?;
            // SAFETY: the range is within the buffer, as checked, and the host has room for it.
            let status = unsafe {
                (self.cuda.driver.cuMemcpyDtoH_v2)(host.as_mut_ptr().cast(), self.address + at as u64, bytes)
            };
            self.cuda.driver.check(status, || format!("cuMemcpyDtoH of {bytes} bytes"))?;
        }
        Ok(host)
    }

    /// Queues a copy of `bytes` bytes from the beginning of `from`.
    pub fn queue_copy(&self, from: &Buffer, bytes: usize, stream: &Stream) -> Result<(), String> {
        self.check_range(0, bytes);
        from.check_range(0, bytes);
        self.cuda.enter()?;
        // SAFETY: both ranges are within their buffers, as checked, which wait for the device before they go.
        let status =
            unsafe { (self.cuda.driver.cuMemcpyDtoDAsync_v2)(self.address, from.address, bytes, stream.handle()) };
        self.cuda.driver.check(status, || format!("cuMemcpyDtoDAsync of {bytes} bytes"))
    }

    fn check_range(&self, at: usize, bytes: usize) {
        assert!(at.checked_add(bytes).is_some_and(|end| end <= self.bytes), "within the buffer");
    }
}

impl Drop for Buffer<'_> {
    fn drop(&mut self) {
        // After an error the device refuses everything, and the process is about to end: there is nobody to tell.
        let _ = self.cuda.synchronize();
        // SAFETY: the address was allocated for this buffer alone, and no kernel runs.
        let _ = unsafe { (self.cuda.driver.cuMemFree_v2)(self.address) };
    }
}
