//! The CUDA driver, as `cuda.h` of CUDA 11.4 to 13 declares it.

use std::collections::BTreeMap;
use std::error::Error;
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::sync::{Mutex, OnceLock, PoisonError};

use libloading::os::unix::{Library, RTLD_NOW};

use super::{Driver, Handle, functions, text};

/// Device addresses have 64 bits, as pointers do.
type Address = u64;

functions! {
    /// Functions of libcuda.
    Functions {
        cuInit: (c_uint);
        cuDeviceGetCount: (*mut c_int);
        cuDeviceGet: (*mut c_int, c_int);
        cuDeviceGetPCIBusId: (*mut c_char, c_int, c_int);
        cuDevicePrimaryCtxRetain: (*mut Handle, c_int);
        cuCtxPushCurrent_v2: (Handle);
        cuCtxPopCurrent_v2: (*mut Handle);
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
        cuGetErrorName: (c_int, *mut *const c_char);
        cuGetErrorString: (c_int, *mut *const c_char);
    }
}

struct CudaDriver {
    functions: Functions,
    /// Primary contexts by ordinal, retained for as long as the process lives.
    contexts: Mutex<BTreeMap<i32, usize>>,
    _library: Library,
}

/// The driver, opened once for the process.
pub(super) fn driver() -> Result<&'static dyn Driver, String> {
    CudaDriver::get().map(|driver| driver as &dyn Driver)
}

impl CudaDriver {
    /// The driver, opened once for the process.
    fn get() -> Result<&'static Self, String> {
        static DRIVER: OnceLock<Result<CudaDriver, String>> = OnceLock::new();
        DRIVER.get_or_init(Self::open).as_ref().map_err(Clone::clone)
    }

    fn open() -> Result<Self, String> {
        // SAFETY: NVIDIA's driver, by its name; loading it runs its initialisers and nothing of ours depends on them.
        let library = unsafe { Library::open(Some("libcuda.so.1"), RTLD_NOW) };
        // The reason is the error's source.
        let library = library.map_err(|e| e.source().map_or(e.to_string(), ToString::to_string))?;
        let functions = Functions::of(&library)?;
        let driver = Self { functions, contexts: Mutex::default(), _library: library };
        // SAFETY: takes a number.
        driver.check(unsafe { (driver.functions.cuInit)(0) }, || "cuInit".into())?;
        Ok(driver)
    }

    fn check(&self, code: c_int, call: impl FnOnce() -> String) -> Result<(), String> {
        if code == 0 {
            return Ok(());
        }
        let describe = |get: unsafe extern "C" fn(c_int, *mut *const c_char) -> c_int| {
            let mut found = std::ptr::null();
            // SAFETY: any number may be asked for, and the out pointer is valid; what is found is a constant.
            unsafe {
                get(code, &mut found);
                text(found)
            }
        };
        let (name, meaning) = (describe(self.functions.cuGetErrorName), describe(self.functions.cuGetErrorString));
        Err(format!("{} failed: {name} ({code}), {meaning}", call()))
    }

    fn context(&self, ordinal: i32) -> Result<Handle, String> {
        let mut contexts = self.contexts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(&context) = contexts.get(&ordinal) {
            return Ok(context as Handle);
        }
        let (mut device, mut context) = (0, std::ptr::null_mut());
        // SAFETY: the out pointers are valid, and the device is the driver's own.
        unsafe {
            let code = (self.functions.cuDeviceGet)(&mut device, ordinal);
            self.check(code, || format!("cuDeviceGet({ordinal})"))?;
            let code = (self.functions.cuDevicePrimaryCtxRetain)(&mut context, device);
            self.check(code, || format!("cuDevicePrimaryCtxRetain({ordinal})"))?;
        }
        contexts.insert(ordinal, context as usize);
        Ok(context)
    }

    fn on(&self, ordinal: i32, call: impl FnOnce() -> c_int, what: impl FnOnce() -> String) -> Result<(), String> {
        let context = self.context(ordinal)?;
        // SAFETY: the context is never released.
        self.check(unsafe { (self.functions.cuCtxPushCurrent_v2)(context) }, || "cuCtxPushCurrent".into())?;
        let code = call();
        let mut popped = std::ptr::null_mut();
        // SAFETY: the out pointer is valid; what was pushed above is popped.
        unsafe { (self.functions.cuCtxPopCurrent_v2)(&mut popped) };
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
        let (mut device, mut buffer) = (0, [0u8; 64]);
        // SAFETY: the out pointer is valid, and the buffer has the size given.
        let code = unsafe {
            match (self.functions.cuDeviceGet)(&mut device, ordinal) {
                0 => (self.functions.cuDeviceGetPCIBusId)(buffer.as_mut_ptr().cast(), buffer.len() as c_int, device),
                code => code,
            }
        };
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
    /// As the trait says.
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
    /// As the trait says.
    unsafe fn free_pinned(&self, ordinal: i32, memory: *mut c_void) -> Result<(), String> {
        // SAFETY: by this function's contract.
        self.on(ordinal, || unsafe { (self.functions.cuMemFreeHost)(memory) }, || "cuMemFreeHost".into())
    }

    /// # Safety
    /// As the trait says.
    unsafe fn copy(
        &self,
        ordinal: i32,
        to: *mut c_void,
        from: *const c_void,
        bytes: usize,
        stream: Handle,
    ) -> Result<(), String> {
        // SAFETY: by this function's contract; with unified addressing the driver sees what kinds of memory they are.
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
    /// As the trait says.
    unsafe fn destroy_stream(&self, ordinal: i32, stream: Handle) -> Result<(), String> {
        // SAFETY: by this function's contract.
        self.on(ordinal, || unsafe { (self.functions.cuStreamDestroy_v2)(stream) }, || "cuStreamDestroy".into())
    }

    /// # Safety
    /// As the trait says.
    unsafe fn synchronize_stream(&self, ordinal: i32, stream: Handle) -> Result<(), String> {
        // SAFETY: by this function's contract.
        self.on(ordinal, || unsafe { (self.functions.cuStreamSynchronize)(stream) }, || "cuStreamSynchronize".into())
    }

    fn synchronize(&self, ordinal: i32) -> Result<(), String> {
        // SAFETY: takes nothing.
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
    /// As the trait says.
    unsafe fn destroy_event(&self, ordinal: i32, event: Handle) -> Result<(), String> {
        // SAFETY: by this function's contract.
        self.on(ordinal, || unsafe { (self.functions.cuEventDestroy_v2)(event) }, || "cuEventDestroy".into())
    }

    /// # Safety
    /// As the trait says.
    unsafe fn record(&self, ordinal: i32, event: Handle, stream: Handle) -> Result<(), String> {
        // SAFETY: by this function's contract.
        self.on(ordinal, || unsafe { (self.functions.cuEventRecord)(event, stream) }, || "cuEventRecord".into())
    }

    /// # Safety
    /// As the trait says.
    unsafe fn wait(&self, ordinal: i32, stream: Handle, event: Handle) -> Result<(), String> {
        // SAFETY: by this function's contract.
        let call = || unsafe { (self.functions.cuStreamWaitEvent)(stream, event, 0) };
        self.on(ordinal, call, || "cuStreamWaitEvent".into())
    }

    /// # Safety
    /// As the trait says.
    unsafe fn synchronize_event(&self, ordinal: i32, event: Handle) -> Result<(), String> {
        // SAFETY: by this function's contract.
        self.on(ordinal, || unsafe { (self.functions.cuEventSynchronize)(event) }, || "cuEventSynchronize".into())
    }
}
