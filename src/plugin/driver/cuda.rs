//! The CUDA driver, as `cuda.h` of CUDA 11.4 to 13 declares it.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::sync::OnceLock;

use super::{Driver, Handle};
use crate::gpu::{Cuda, functions};

/// Device addresses have 64 bits, as pointers do.
type Address = u64;

functions! {
    /// The functions of libcuda other than those that launch kernels.
    Functions {
        cuDeviceGetCount: (*mut c_int);
        cuDeviceGetPCIBusId: (*mut c_char, c_int, c_int);
        cuCtxSynchronize: ();
        cuMemAlloc_v2: (*mut Address, usize);
        cuMemFree_v2: (Address);
        cuMemHostAlloc: (*mut *mut c_void, usize, c_uint);
        cuMemFreeHost: (*mut c_void);
        cuMemcpyAsync: (Address, Address, usize, Handle);
        cuStreamCreate: (*mut Handle, c_uint);
        cuStreamDestroy_v2: (Handle);
        cuStreamSynchronize: (Handle);
        cuStreamWaitEvent: (Handle, Handle, c_uint);
        cuEventCreate: (*mut Handle, c_uint);
        cuEventDestroy_v2: (Handle);
        cuEventRecord: (Handle, Handle);
        cuEventSynchronize: (Handle);
    }
}

struct CudaDriver {
    cuda: &'static Cuda,
    functions: Functions,
}

/// The driver, opened once for the process.
pub(super) fn driver() -> Result<&'static dyn Driver, String> {
    static DRIVER: OnceLock<Result<CudaDriver, String>> = OnceLock::new();
    let open = || {
        let cuda = Cuda::get().map_err(|e| e.to_string())?;
        Ok(CudaDriver { cuda, functions: Functions::of(cuda.library())? })
    };
    DRIVER.get_or_init(open).as_ref().map(|driver| driver as &dyn Driver).map_err(Clone::clone)
}

impl CudaDriver {
    fn check(&self, code: c_int, call: impl FnOnce() -> String) -> Result<(), String> {
        self.cuda.check(code, call).map_err(|e| e.to_string())
    }

    fn on(&self, ordinal: i32, call: impl FnOnce() -> c_int, what: impl FnOnce() -> String) -> Result<(), String> {
        let current = self.cuda.current(ordinal).map_err(|e| e.to_string())?;
        let code = call();
        drop(current);
        self.check(code, what)
    }
}

impl Driver for CudaDriver {
    fn devices(&self) -> Result<i32, String> {
        let mut count = 0;
        // SAFETY: the out pointer is valid.
        self.check(unsafe { (self.functions.cuDeviceGetCount)(&mut count) }, || "cuDeviceGetCount".into())?;
        Ok(count)
    }

    fn pci(&self, ordinal: i32) -> Option<String> {
        let (device, mut buffer) = (self.cuda.device(ordinal).ok()?, [0u8; 64]);
        // SAFETY: the buffer has the size given.
        let code =
            unsafe { (self.functions.cuDeviceGetPCIBusId)(buffer.as_mut_ptr().cast(), buffer.len() as c_int, device) };
        let name = CStr::from_bytes_until_nul(&buffer).ok()?;
        (code == 0).then(|| name.to_string_lossy().to_lowercase())
    }

    fn allocate(&self, ordinal: i32, bytes: usize) -> Result<*mut c_void, String> {
        let mut memory = 0;
        // SAFETY: the out pointer is valid.
        let call = || unsafe { (self.functions.cuMemAlloc_v2)(&mut memory, bytes) };
        self.on(ordinal, call, || format!("cuMemAlloc of {bytes} bytes"))?;
        Ok(memory as *mut c_void)
    }

    /// # Safety
    /// As in the trait.
    unsafe fn free(&self, ordinal: i32, memory: *mut c_void) -> Result<(), String> {
        // SAFETY: by this function's contract.
        self.on(ordinal, || unsafe { (self.functions.cuMemFree_v2)(memory as Address) }, || "cuMemFree".into())
    }

    fn allocate_pinned(&self, ordinal: i32, bytes: usize) -> Result<*mut c_void, String> {
        /// CU_MEMHOSTALLOC_PORTABLE
        const PORTABLE: c_uint = 1;
        let mut memory = std::ptr::null_mut();
        // SAFETY: the out pointer is valid.
        let call = || unsafe { (self.functions.cuMemHostAlloc)(&mut memory, bytes, PORTABLE) };
        self.on(ordinal, call, || format!("cuMemHostAlloc of {bytes} bytes"))?;
        Ok(memory)
    }

    /// # Safety
    /// As in the trait.
    unsafe fn free_pinned(&self, ordinal: i32, memory: *mut c_void) -> Result<(), String> {
        // SAFETY: by this function's contract.
        self.on(ordinal, || unsafe { (self.functions.cuMemFreeHost)(memory) }, || "cuMemFreeHost".into())
    }

    /// # Safety
    /// As in the trait.
    unsafe fn copy(
        &self,
        ordinal: i32,
        to: *mut c_void,
        from: *const c_void,
        bytes: usize,
        stream: Handle,
    ) -> Result<(), String> {
        // SAFETY: by this function's contract; with unified addressing the driver recognises both kinds of memory.
        let call = || unsafe { (self.functions.cuMemcpyAsync)(to as Address, from as Address, bytes, stream) };
        self.on(ordinal, call, || format!("cuMemcpyAsync of {bytes} bytes"))
    }

    fn create_stream(&self, ordinal: i32) -> Result<Handle, String> {
        /// CU_STREAM_NON_BLOCKING
        const NON_BLOCKING: c_uint = 1;
        let mut stream = std::ptr::null_mut();
        // SAFETY: the out pointer is valid.
        let call = || unsafe { (self.functions.cuStreamCreate)(&mut stream, NON_BLOCKING) };
        self.on(ordinal, call, || "cuStreamCreate".into())?;
        Ok(stream)
    }

    /// # Safety
    /// As in the trait.
    unsafe fn destroy_stream(&self, ordinal: i32, stream: Handle) -> Result<(), String> {
        // SAFETY: by this function's contract.
        self.on(ordinal, || unsafe { (self.functions.cuStreamDestroy_v2)(stream) }, || "cuStreamDestroy".into())
    }

    /// # Safety
    /// As in the trait.
    unsafe fn synchronize_stream(&self, ordinal: i32, stream: Handle) -> Result<(), String> {
        // SAFETY: by this function's contract.
        self.on(ordinal, || unsafe { (self.functions.cuStreamSynchronize)(stream) }, || "cuStreamSynchronize".into())
    }

    fn synchronize(&self, ordinal: i32) -> Result<(), String> {
        // SAFETY: the function has no arguments.
        self.on(ordinal, || unsafe { (self.functions.cuCtxSynchronize)() }, || "cuCtxSynchronize".into())
    }

    fn create_event(&self, ordinal: i32) -> Result<Handle, String> {
        /// CU_EVENT_DISABLE_TIMING
        const DISABLE_TIMING: c_uint = 2;
        let mut event = std::ptr::null_mut();
        // SAFETY: the out pointer is valid.
        let call = || unsafe { (self.functions.cuEventCreate)(&mut event, DISABLE_TIMING) };
        self.on(ordinal, call, || "cuEventCreate".into())?;
        Ok(event)
    }

    /// # Safety
    /// As in the trait.
    unsafe fn destroy_event(&self, ordinal: i32, event: Handle) -> Result<(), String> {
        // SAFETY: by this function's contract.
        self.on(ordinal, || unsafe { (self.functions.cuEventDestroy_v2)(event) }, || "cuEventDestroy".into())
    }

    /// # Safety
    /// As in the trait.
    unsafe fn record(&self, ordinal: i32, event: Handle, stream: Handle) -> Result<(), String> {
        // SAFETY: by this function's contract.
        self.on(ordinal, || unsafe { (self.functions.cuEventRecord)(event, stream) }, || "cuEventRecord".into())
    }

    /// # Safety
    /// As in the trait.
    unsafe fn wait(&self, ordinal: i32, stream: Handle, event: Handle) -> Result<(), String> {
        // SAFETY: by this function's contract.
        let call = || unsafe { (self.functions.cuStreamWaitEvent)(stream, event, 0) };
        self.on(ordinal, call, || "cuStreamWaitEvent".into())
    }

    /// # Safety
    /// As in the trait.
    unsafe fn synchronize_event(&self, ordinal: i32, event: Handle) -> Result<(), String> {
        // SAFETY: by this function's contract.
        self.on(ordinal, || unsafe { (self.functions.cuEventSynchronize)(event) }, || "cuEventSynchronize".into())
    }
}
