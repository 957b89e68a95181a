//! HIP, as `hip_runtime_api.h` of ROCm 5 to 7 declares it.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::sync::OnceLock;

use super::{Driver, Handle};
use crate::gpu::{Hip, functions};

functions! {
    /// The functions of HIP other than those that launch kernels.
    Functions {
        hipGetDeviceCount: (*mut c_int);
        hipMalloc: (*mut *mut c_void, usize);
        hipFree: (*mut c_void);
        hipHostMalloc: (*mut *mut c_void, usize, c_uint);
        hipHostFree: (*mut c_void);
        hipMemcpyAsync: (*mut c_void, *const c_void, usize, c_int, Handle);
        hipStreamCreateWithFlags: (*mut Handle, c_uint);
        hipStreamDestroy: (Handle);
        hipStreamSynchronize: (Handle);
        hipDeviceSynchronize: ();
        hipEventCreateWithFlags: (*mut Handle, c_uint);
        hipEventDestroy: (Handle);
        hipEventRecord: (Handle, Handle);
        hipEventSynchronize: (Handle);
        hipStreamWaitEvent: (Handle, Handle, c_uint);
    }
}

type PciBusId = unsafe extern "C" fn(*mut c_char, c_int, c_int) -> c_int;

struct HipDriver {
    hip: &'static Hip,
    functions: Functions,
    pci: Option<PciBusId>,
}

/// HIP, opened once for the process.
pub(super) fn driver() -> Result<&'static dyn Driver, String> {
    static DRIVER: OnceLock<Result<HipDriver, String>> = OnceLock::new();
    let open = || {
        let hip = Hip::get().map_err(|e| e.to_string())?;
        let functions = Functions::of(hip.library())?;
        // SAFETY: the signature is that of hip_runtime_api.h.
        let pci = unsafe { hip.library().get::<PciBusId>(b"hipDeviceGetPCIBusId\0") }.ok().map(|f| *f);
        Ok(HipDriver { hip, functions, pci })
    };
    DRIVER.get_or_init(open).as_ref().map(|driver| driver as &dyn Driver).map_err(Clone::clone)
}

impl HipDriver {
    fn check(&self, code: c_int, call: impl FnOnce() -> String) -> Result<(), String> {
        self.hip.check(code, call).map_err(|e| e.to_string())
    }

    fn on(&self, ordinal: i32, call: impl FnOnce() -> c_int, what: impl FnOnce() -> String) -> Result<(), String> {
        let current = self.hip.current(ordinal).map_err(|e| e.to_string())?;
        let code = call();
        drop(current);
        self.check(code, what)
    }
}

impl Driver for HipDriver {
    fn devices(&self) -> Result<i32, String> {
        let mut count = 0;
        // SAFETY: the out pointer is valid.
        let code = unsafe { (self.functions.hipGetDeviceCount)(&mut count) };
        self.check(code, || "hipGetDeviceCount".into())?;
        Ok(count)
    }

    fn pci(&self, ordinal: i32) -> Option<String> {
        let mut buffer = [0u8; 64];
        // SAFETY: the buffer has the size given.
        let code = unsafe { self.pci?(buffer.as_mut_ptr().cast(), buffer.len() as c_int, ordinal) };
        let name = CStr::from_bytes_until_nul(&buffer).ok()?;
        (code == 0).then(|| name.to_string_lossy().to_lowercase())
    }

    fn allocate(&self, ordinal: i32, bytes: usize) -> Result<*mut c_void, String> {
        let mut memory = std::ptr::null_mut();
        // SAFETY: the out pointer is valid.
        let call = || unsafe { (self.functions.hipMalloc)(&mut memory, bytes) };
        self.on(ordinal, call, || format!("hipMalloc of {bytes} bytes"))?;
        Ok(memory)
    }

    /// # Safety
    /// As in the trait.
    unsafe fn free(&self, ordinal: i32, memory: *mut c_void) -> Result<(), String> {
        // SAFETY: by this function's contract.
        self.on(ordinal, || unsafe { (self.functions.hipFree)(memory) }, || "hipFree".into())
    }

    fn allocate_pinned(&self, ordinal: i32, bytes: usize) -> Result<*mut c_void, String> {
        let mut memory = std::ptr::null_mut();
        // SAFETY: the out pointer is valid.
        let call = || unsafe { (self.functions.hipHostMalloc)(&mut memory, bytes, 0) };
        self.on(ordinal, call, || format!("hipHostMalloc of {bytes} bytes"))?;
        Ok(memory)
    }

    /// # Safety
    /// As in the trait.
    unsafe fn free_pinned(&self, ordinal: i32, memory: *mut c_void) -> Result<(), String> {
        // SAFETY: by this function's contract.
        self.on(ordinal, || unsafe { (self.functions.hipHostFree)(memory) }, || "hipHostFree".into())
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
        /// hipMemcpyDefault: HIP recognises the kinds of memory by their addresses.
        const DEFAULT: c_int = 4;
        // SAFETY: by this function's contract.
        let call = || unsafe { (self.functions.hipMemcpyAsync)(to, from, bytes, DEFAULT, stream) };
        self.on(ordinal, call, || format!("hipMemcpyAsync of {bytes} bytes"))
    }

    fn create_stream(&self, ordinal: i32) -> Result<Handle, String> {
        /// hipStreamNonBlocking
        const NON_BLOCKING: c_uint = 1;
        let mut stream = std::ptr::null_mut();
        // SAFETY: the out pointer is valid.
        let call = || unsafe { (self.functions.hipStreamCreateWithFlags)(&mut stream, NON_BLOCKING) };
        self.on(ordinal, call, || "hipStreamCreateWithFlags".into())?;
        Ok(stream)
    }

    /// # Safety
    /// As in the trait.
    unsafe fn destroy_stream(&self, ordinal: i32, stream: Handle) -> Result<(), String> {
        // SAFETY: by this function's contract.
        self.on(ordinal, || unsafe { (self.functions.hipStreamDestroy)(stream) }, || "hipStreamDestroy".into())
    }

    /// # Safety
    /// As in the trait.
    unsafe fn synchronize_stream(&self, ordinal: i32, stream: Handle) -> Result<(), String> {
        // SAFETY: by this function's contract.
        self.on(ordinal, || unsafe { (self.functions.hipStreamSynchronize)(stream) }, || "hipStreamSynchronize".into())
    }

    fn synchronize(&self, ordinal: i32) -> Result<(), String> {
        // SAFETY: the function has no arguments.
        self.on(ordinal, || unsafe { (self.functions.hipDeviceSynchronize)() }, || "hipDeviceSynchronize".into())
    }

    fn create_event(&self, ordinal: i32) -> Result<Handle, String> {
        /// hipEventDisableTiming
        const DISABLE_TIMING: c_uint = 2;
        let mut event = std::ptr::null_mut();
        // SAFETY: the out pointer is valid.
        let call = || unsafe { (self.functions.hipEventCreateWithFlags)(&mut event, DISABLE_TIMING) };
        self.on(ordinal, call, || "hipEventCreateWithFlags".into())?;
        Ok(event)
    }

    /// # Safety
    /// As in the trait.
    unsafe fn destroy_event(&self, ordinal: i32, event: Handle) -> Result<(), String> {
        // SAFETY: by this function's contract.
        self.on(ordinal, || unsafe { (self.functions.hipEventDestroy)(event) }, || "hipEventDestroy".into())
    }

    /// # Safety
    /// As in the trait.
    unsafe fn record(&self, ordinal: i32, event: Handle, stream: Handle) -> Result<(), String> {
        // SAFETY: by this function's contract.
        self.on(ordinal, || unsafe { (self.functions.hipEventRecord)(event, stream) }, || "hipEventRecord".into())
    }

    /// # Safety
    /// As in the trait.
    unsafe fn wait(&self, ordinal: i32, stream: Handle, event: Handle) -> Result<(), String> {
        // SAFETY: by this function's contract.
        let call = || unsafe { (self.functions.hipStreamWaitEvent)(stream, event, 0) };
        self.on(ordinal, call, || "hipStreamWaitEvent".into())
    }

    /// # Safety
    /// As in the trait.
    unsafe fn synchronize_event(&self, ordinal: i32, event: Handle) -> Result<(), String> {
        // SAFETY: by this function's contract.
        self.on(ordinal, || unsafe { (self.functions.hipEventSynchronize)(event) }, || "hipEventSynchronize".into())
    }
}
