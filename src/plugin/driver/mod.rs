//! What the provider needs from a GPU driver: memory, copies, streams and events. One implementation per vendor.

mod cuda;
mod hip;

use std::ffi::{CStr, c_void};

pub use crate::gpu::{Handle, Vendor};

/// A vendor's ids and names for ONNX Runtime, and its driver.
pub trait Names: Sized {
    /// Every vendor.
    const ALL: [Self; 2];

    /// The PCI vendor id.
    fn id(self) -> u32;

    /// The vendor's name, the name of its device memory, and the name of its pinned memory. ONNX Runtime's own
    /// providers use the same names.
    fn names(self) -> (&'static CStr, &'static CStr, &'static CStr);

    /// The driver, opened on the first call.
    ///
    /// # Errors
    /// If this machine has no such driver.
    fn driver(self) -> Result<&'static dyn Driver, String>;
}

impl Names for Vendor {
    const ALL: [Self; 2] = [Self::Amd, Self::Nvidia];

    fn id(self) -> u32 {
        match self {
            Self::Amd => 0x1002,
            Self::Nvidia => 0x10de,
        }
    }

    fn names(self) -> (&'static CStr, &'static CStr, &'static CStr) {
        match self {
            Self::Amd => (c"AMD", c"Hip", c"HipPinned"),
            Self::Nvidia => (c"NVIDIA", c"Cuda", c"CudaPinned"),
        }
    }

    fn driver(self) -> Result<&'static dyn Driver, String> {
        match self {
            Self::Amd => hip::driver(),
            Self::Nvidia => cuda::driver(),
        }
    }
}

/// A GPU driver. Every call is for one device, `ordinal`, and leaves the calling thread's current device unchanged.
/// Errors name the driver function that failed, and the reason.
pub trait Driver: Send + Sync {
    /// Number of devices.
    fn devices(&self) -> Result<i32, String>;

    /// PCI address of device `ordinal`, such as 0000:c1:00.0, if the driver reports it.
    fn pci(&self, ordinal: i32) -> Option<String>;

    /// Allocates memory of the device.
    fn allocate(&self, ordinal: i32, bytes: usize) -> Result<*mut c_void, String>;

    /// Frees memory of the device. Waits for all work on it.
    ///
    /// # Safety
    /// The memory is of [`Driver::allocate`] and is not used afterwards.
    unsafe fn free(&self, ordinal: i32, memory: *mut c_void) -> Result<(), String>;

    /// Allocates host memory that the device can copy from and to while the host continues.
    fn allocate_pinned(&self, ordinal: i32, bytes: usize) -> Result<*mut c_void, String>;

    /// Frees pinned memory.
    ///
    /// # Safety
    /// The memory is of [`Driver::allocate_pinned`] and is not used afterwards.
    unsafe fn free_pinned(&self, ordinal: i32, memory: *mut c_void) -> Result<(), String>;

    /// Queues a copy between any two kinds of memory on `stream`.
    ///
    /// # Safety
    /// Both ranges hold `bytes` bytes, and stay valid until the stream has run the copy.
    unsafe fn copy(
        &self,
        ordinal: i32,
        to: *mut c_void,
        from: *const c_void,
        bytes: usize,
        stream: Handle,
    ) -> Result<(), String>;

    /// A stream that does not wait for the default stream.
    fn create_stream(&self, ordinal: i32) -> Result<Handle, String>;

    /// # Safety
    /// The stream is of [`Driver::create_stream`] and is not used afterwards.
    unsafe fn destroy_stream(&self, ordinal: i32, stream: Handle) -> Result<(), String>;

    /// Waits for all work queued on `stream`; a kernel fault is an error here.
    ///
    /// # Safety
    /// The stream is one of this device that has not been destroyed, or null.
    unsafe fn synchronize_stream(&self, ordinal: i32, stream: Handle) -> Result<(), String>;

    /// Waits for all work queued on the device.
    fn synchronize(&self, ordinal: i32) -> Result<(), String>;

    /// An event without timing.
    fn create_event(&self, ordinal: i32) -> Result<Handle, String>;

    /// # Safety
    /// The event is of [`Driver::create_event`] and is not used afterwards.
    unsafe fn destroy_event(&self, ordinal: i32, event: Handle) -> Result<(), String>;

    /// Records in the event the end of the work queued on `stream` so far.
    ///
    /// # Safety
    /// Event and stream belong to this device and are not destroyed.
    unsafe fn record(&self, ordinal: i32, event: Handle, stream: Handle) -> Result<(), String>;

    /// Makes work queued on `stream` from now on wait for the event.
    ///
    /// # Safety
    /// Event and stream are not destroyed.
    unsafe fn wait(&self, ordinal: i32, stream: Handle, event: Handle) -> Result<(), String>;

    /// Blocks the calling thread until the event is reached.
    ///
    /// # Safety
    /// The event is not destroyed.
    unsafe fn synchronize_event(&self, ordinal: i32, event: Handle) -> Result<(), String>;
}
