//! What the provider asks of a GPU's driver: memory, copies, streams and events. One implementation a vendor.

mod cuda;
mod hip;

use std::ffi::{CStr, c_void};

pub use crate::gpu::{Handle, Vendor};

/// What ONNX Runtime must know of a vendor, and the vendor's driver.
pub trait Names: Sized {
    /// Every vendor.
    const ALL: [Self; 2];

    /// The PCI vendor id.
    fn id(self) -> u32;

    /// The vendor's name, what its device memory is called, and what its pinned memory is called. ONNX Runtime's own
    /// providers use the same names.
    fn names(self) -> (&'static CStr, &'static CStr, &'static CStr);

    /// The driver, opened when this is first called.
    ///
    /// # Errors
    /// If this machine has none.
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

/// A GPU driver. Every call is made for one device, `ordinal`, and leaves the calling thread's current device as it
/// was. Errors say which function of the driver failed and how.
pub trait Driver: Send + Sync {
    /// How many devices there are.
    fn devices(&self) -> Result<i32, String>;

    /// Where device `ordinal` sits, such as 0000:c1:00.0, if the driver says so.
    fn pci(&self, ordinal: i32) -> Option<String>;

    /// Memory of the device.
    fn allocate(&self, ordinal: i32, bytes: usize) -> Result<*mut c_void, String>;

    /// Gives memory of the device back. Waits for all work on it.
    ///
    /// # Safety
    /// The memory is of [`Driver::allocate`] and nobody uses it any more.
    unsafe fn free(&self, ordinal: i32, memory: *mut c_void) -> Result<(), String>;

    /// Host memory that the device can copy from and to while the host goes on.
    fn allocate_pinned(&self, ordinal: i32, bytes: usize) -> Result<*mut c_void, String>;

    /// Gives pinned memory back.
    ///
    /// # Safety
    /// The memory is of [`Driver::allocate_pinned`] and nobody uses it any more.
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

    /// A stream that does not wait for the default one.
    fn create_stream(&self, ordinal: i32) -> Result<Handle, String>;

    /// # Safety
    /// The stream is of [`Driver::create_stream`] and is used no more.
    unsafe fn destroy_stream(&self, ordinal: i32, stream: Handle) -> Result<(), String>;

    /// Waits for all that is queued on `stream`; a fault of a kernel is an error here.
    ///
    /// # Safety
    /// The stream is one of this device that has not been destroyed, or null.
    unsafe fn synchronize_stream(&self, ordinal: i32, stream: Handle) -> Result<(), String>;

    /// Waits for all that is queued on the device.
    fn synchronize(&self, ordinal: i32) -> Result<(), String>;

    /// An event without timing.
    fn create_event(&self, ordinal: i32) -> Result<Handle, String>;

    /// # Safety
    /// The event is of [`Driver::create_event`] and is used no more.
    unsafe fn destroy_event(&self, ordinal: i32, event: Handle) -> Result<(), String>;

    /// Marks the end of what is queued on `stream` so far.
    ///
    /// # Safety
    /// Event and stream are of this device and live.
    unsafe fn record(&self, ordinal: i32, event: Handle, stream: Handle) -> Result<(), String>;

    /// Lets `stream` wait for the event before what is queued on it later.
    ///
    /// # Safety
    /// Event and stream live.
    unsafe fn wait(&self, ordinal: i32, stream: Handle, event: Handle) -> Result<(), String>;

    /// Lets the calling thread wait for the event.
    ///
    /// # Safety
    /// The event lives.
    unsafe fn synchronize_event(&self, ordinal: i32, event: Handle) -> Result<(), String>;
}
