//! OrtAllocator: allocates from a [`Pool`].

use std::ffi::c_void;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::NonNull;

use super::abi::{self, MemoryInfo, SyncStream, VERSION};
use super::driver::Handle;
use super::host::Host;
use super::pool::Pool;

/// An allocator of a session, or of the process.
#[repr(C)]
pub struct Allocator {
    abi: abi::Allocator,
    host: &'static Host,
    pool: &'static Pool,
    info: *const MemoryInfo,
}

impl Allocator {
    /// An allocator of `pool`, whose memory ONNX Runtime identifies by `info`.
    pub fn create(host: &'static Host, pool: &'static Pool, info: *const MemoryInfo) -> *mut abi::Allocator {
        let abi = abi::Allocator {
            version: VERSION,
            Alloc: allocate,
            Free: free,
            Info: info_of,
            Reserve: allocate,
            GetStats: None,
            AllocOnStream: allocate_on_stream,
        };
        Box::into_raw(Box::new(Self { abi, host, pool, info })).cast()
    }

    /// # Safety
    /// The allocator is of [`Allocator::create`] and is not used afterwards.
    pub unsafe fn release(this: *mut abi::Allocator) {
        // SAFETY: by this function's contract it is a whole box of this type.
        drop(unsafe { Box::from_raw(this.cast::<Self>()) });
    }

    /// # Safety
    /// `this` is of [`Allocator::create`] and not yet released.
    unsafe fn of<'a>(this: *const abi::Allocator) -> &'a Self {
        // SAFETY: by this function's contract; `abi` is the first member.
        unsafe { &*this.cast::<Self>() }
    }

    /// Null for zero bytes, and when out of memory, as ONNX Runtime expects.
    fn allocate(&self, bytes: usize, stream: Handle) -> *mut c_void {
        if bytes == 0 {
            return std::ptr::null_mut();
        }
        let allocated = catch_unwind(AssertUnwindSafe(|| self.pool.allocate(bytes, stream)));
        allocated.ok().and_then(Result::ok).map_or(std::ptr::null_mut(), NonNull::as_ptr)
    }
}

/// # Safety
/// Only ONNX Runtime may call this, with pointers that it was given.
unsafe extern "system" fn allocate(this: *mut abi::Allocator, bytes: usize) -> *mut c_void {
    // SAFETY: ONNX Runtime passes pointers that it was given.
    unsafe { Allocator::of(this) }.allocate(bytes, std::ptr::null_mut())
}

/// # Safety
/// Only ONNX Runtime may call this, with pointers that it was given.
unsafe extern "system" fn allocate_on_stream(
    this: *mut abi::Allocator,
    bytes: usize,
    stream: *mut SyncStream,
) -> *mut c_void {
    // SAFETY: ONNX Runtime passes pointers that it was given.
    let this = unsafe { Allocator::of(this) };
    let handle = match stream.is_null() {
        true => std::ptr::null_mut(),
        // SAFETY: the stream is ONNX Runtime's.
        false => unsafe { (this.host.api.SyncStream_GetHandle)(stream) },
    };
    this.allocate(bytes, handle)
}

/// # Safety
/// Only ONNX Runtime may call this, with pointers that it was given.
unsafe extern "system" fn free(this: *mut abi::Allocator, memory: *mut c_void) {
    // SAFETY: ONNX Runtime passes pointers that it was given.
    let this = unsafe { Allocator::of(this) };
    // A panic here leaks the memory, which is better than unwinding into ONNX Runtime.
    let _ = catch_unwind(AssertUnwindSafe(|| this.pool.free(memory)));
}

/// # Safety
/// Only ONNX Runtime may call this, with pointers that it was given.
unsafe extern "system" fn info_of(this: *const abi::Allocator) -> *const MemoryInfo {
    // SAFETY: ONNX Runtime passes pointers that it was given.
    unsafe { Allocator::of(this) }.info
}
