//! The CUDA driver, opened when first needed rather than linked.

use std::collections::BTreeMap;
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::sync::{Mutex, OnceLock, PoisonError};

use libloading::os::unix::{Library, RTLD_NOW};

use crate::gpu::error::GpuError;
use crate::gpu::plan::{self, MatrixCores};
use crate::gpu::runtime::{
    CodeFormat, Current, Handle, KernelLaunch, Previous, Properties, Runtime, functions, reason, text,
};

/// Values of CUdevice_attribute.
const WARP_SIZE: c_int = 10;
const MULTIPROCESSOR_COUNT: c_int = 16;
const COMPUTE_CAPABILITY_MAJOR: c_int = 75;
const COMPUTE_CAPABILITY_MINOR: c_int = 76;
const MAX_SHARED_MEMORY_PER_BLOCK_OPTIN: c_int = 97;
/// Value of CUfunction_attribute.
const MAX_DYNAMIC_SHARED_SIZE_BYTES: c_int = 8;
/// Bytes of shared memory that every kernel may use.
const SHARED_BYTES_BY_DEFAULT: u32 = 48 << 10;

functions! {
    /// The libcuda functions for loading and launching kernels, as cuda.h of CUDA 11.4 to 13 declares them: a function
    /// whose signature changes gets a new name.
    Functions {
        cuInit: (c_uint);
        cuDriverGetVersion: (*mut c_int);
        cuDeviceGet: (*mut c_int, c_int);
        cuDeviceGetAttribute: (*mut c_int, c_int, c_int);
        cuDevicePrimaryCtxRetain: (*mut Handle, c_int);
        cuCtxPushCurrent_v2: (Handle);
        cuCtxPopCurrent_v2: (*mut Handle);
        cuModuleLoadData: (*mut Handle, *const c_void);
        cuModuleGetFunction: (*mut Handle, Handle, *const c_char);
        cuFuncSetAttribute: (Handle, c_int, c_int);
        cuLaunchKernel: (
            Handle, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, Handle, *mut *mut c_void, *mut *mut c_void
        );
        cuStreamIsCapturing: (Handle, *mut c_int);
        cuGetErrorName: (c_int, *mut *const c_char);
        cuGetErrorString: (c_int, *mut *const c_char);
    }
}

/// Whether the code for devices of compute capability `major` and later has the kernels for tensor cores, as
/// `ops/device/cuda.h` decides.
fn has_tensor_cores(major: u32) -> bool {
    major >= 8
}

/// The CUDA driver.
#[derive(Debug)]
pub(crate) struct Cuda {
    functions: Functions,
    /// Primary contexts by ordinal, as addresses; never released.
    contexts: Mutex<BTreeMap<i32, usize>>,
    /// The shared library, never closed.
    library: Library,
}

impl Cuda {
    /// The driver of this machine.
    ///
    /// # Errors
    /// If there is none, a function is missing, or it fails to start.
    pub(crate) fn get() -> Result<&'static Self, GpuError> {
        static CUDA: OnceLock<Result<Cuda, String>> = OnceLock::new();
        CUDA.get_or_init(Self::open)
            .as_ref()
            .map_err(|problem| GpuError::NoRuntime { runtime: "CUDA driver", problem: problem.clone() })
    }

    fn open() -> Result<Self, String> {
        // SAFETY: NVIDIA's driver, by its name; loading it runs its initialisers, on which none of our code depends.
        let library = unsafe { Library::open(Some("libcuda.so.1"), RTLD_NOW) }.map_err(|e| reason(&e))?;
        let cuda = Self { functions: Functions::of(&library)?, contexts: Mutex::default(), library };
        // SAFETY: the argument is a number.
        cuda.check(unsafe { (cuda.functions.cuInit)(0) }, || "cuInit".into()).map_err(|e| e.to_string())?;
        Ok(cuda)
    }

    /// The shared library, for functions that are not listed here.
    pub(crate) fn library(&self) -> &Library {
        &self.library
    }

    /// Makes device `ordinal` current until the result is dropped.
    ///
    /// # Errors
    /// If there is no such device.
    pub(crate) fn current(&self, ordinal: i32) -> Result<Current<'_>, GpuError> {
        Current::new(self, ordinal)
    }

    /// The driver's version number, such as 13000.
    pub(super) fn version(&self) -> Result<i32, GpuError> {
        let mut version = 0;
        // SAFETY: the out pointer is valid.
        let code = unsafe { (self.functions.cuDriverGetVersion)(&mut version) };
        self.check(code, || "cuDriverGetVersion".into())?;
        Ok(version)
    }

    /// The driver's handle of device `ordinal`.
    pub(crate) fn device(&self, ordinal: i32) -> Result<c_int, GpuError> {
        let mut device = 0;
        // SAFETY: the out pointer is valid.
        self.check(unsafe { (self.functions.cuDeviceGet)(&mut device, ordinal) }, || {
            format!("cuDeviceGet({ordinal})")
        })?;
        Ok(device)
    }

    fn context(&self, ordinal: i32) -> Result<Handle, GpuError> {
        let mut contexts = self.contexts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(&context) = contexts.get(&ordinal) {
            return Ok(context as Handle);
        }
        let (device, mut context) = (self.device(ordinal)?, std::ptr::null_mut());
        // SAFETY: the out pointer is valid, and the device is the driver's own.
        let code = unsafe { (self.functions.cuDevicePrimaryCtxRetain)(&mut context, device) };
        self.check(code, || format!("cuDevicePrimaryCtxRetain({ordinal})"))?;
        contexts.insert(ordinal, context as usize);
        Ok(context)
    }

    fn attribute(&self, device: c_int, which: c_int) -> Result<u32, GpuError> {
        let mut value = 0;
        // SAFETY: the out pointer is valid and the device is the driver's own.
        let code = unsafe { (self.functions.cuDeviceGetAttribute)(&mut value, which, device) };
        self.check(code, || format!("cuDeviceGetAttribute({which})"))?;
        let problem = format!("cuDeviceGetAttribute({which}) says {value}");
        u32::try_from(value).map_err(|_| GpuError::Device { ordinal: device, problem })
    }

    /// Converts an error of the driver to ours.
    pub(crate) fn check(&self, code: c_int, call: impl FnOnce() -> String) -> Result<(), GpuError> {
        if code == 0 {
            return Ok(());
        }
        let describe = |get: unsafe extern "C" fn(c_int, *mut *const c_char) -> c_int| {
            let mut found = std::ptr::null();
            // SAFETY: any number is allowed, and the out pointer is valid; the text is a constant.
            unsafe {
                get(code, &mut found);
                text(found)
            }
        };
        let (name, meaning) = (describe(self.functions.cuGetErrorName), describe(self.functions.cuGetErrorString));
        Err(GpuError::Call { call: call(), code, name, meaning })
    }
}

impl Runtime for Cuda {
    fn enter(&self, ordinal: i32) -> Result<Previous, GpuError> {
        let context = self.context(ordinal)?;
        // SAFETY: the context is never released.
        self.check(unsafe { (self.functions.cuCtxPushCurrent_v2)(context) }, || "cuCtxPushCurrent".into())?;
        Ok(Previous(None))
    }

    fn leave(&self, _previous: Previous) {
        let mut popped = std::ptr::null_mut();
        // SAFETY: the out pointer is valid; this pops what `enter` pushed. There is no one to report an error to.
        unsafe { (self.functions.cuCtxPopCurrent_v2)(&mut popped) };
    }

    fn properties(&self, ordinal: i32) -> Result<Properties, GpuError> {
        let device = self.device(ordinal)?;
        let attribute = |which| self.attribute(device, which);
        let (major, minor) = (attribute(COMPUTE_CAPABILITY_MAJOR)?, attribute(COMPUTE_CAPABILITY_MINOR)?);
        let for_plan = plan::Device {
            wave_size: attribute(WARP_SIZE)?,
            compute_units: attribute(MULTIPROCESSOR_COUNT)?,
            shared_bytes: attribute(MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
            matrix: if has_tensor_cores(major) { MatrixCores::Mma } else { MatrixCores::None },
            unpacked_bytes: plan::UNPACKED_BYTES,
        };
        Ok(Properties { arch: format!("sm_{major}{minor}"), for_plan })
    }

    fn load(&self, code: &[u8]) -> Result<Handle, GpuError> {
        let mut module = std::ptr::null_mut();
        // SAFETY: `code` is a complete fatbin or cubin: from our own build, from NVRTC, or from the cache with a
        // correct checksum; the driver copies it.
        let status = unsafe { (self.functions.cuModuleLoadData)(&mut module, code.as_ptr().cast()) };
        self.check(status, || format!("cuModuleLoadData of {} bytes", code.len()))?;
        Ok(module)
    }

    fn function(&self, module: Handle, name: &CStr, shared_bytes: u32) -> Result<Handle, GpuError> {
        let called = name.to_string_lossy();
        let mut function = std::ptr::null_mut();
        // SAFETY: the module was loaded by this driver and is never unloaded.
        let status = unsafe { (self.functions.cuModuleGetFunction)(&mut function, module, name.as_ptr()) };
        self.check(status, || format!("cuModuleGetFunction of {called}"))?;
        if shared_bytes > SHARED_BYTES_BY_DEFAULT {
            // SAFETY: the function belongs to the module; the attribute takes a number.
            let status = unsafe {
                (self.functions.cuFuncSetAttribute)(function, MAX_DYNAMIC_SHARED_SIZE_BYTES, shared_bytes as c_int)
            };
            self.check(status, || format!("cuFuncSetAttribute of {called}, {shared_bytes} bytes of shared memory"))?;
        }
        Ok(function)
    }

    /// # Safety
    /// As in the trait.
    unsafe fn launch(&self, launch: &KernelLaunch<'_>, stream: Handle) -> Result<(), GpuError> {
        let &KernelLaunch { name, function, grid, block, shared_bytes, argument } = launch;
        let mut arguments = [(&raw const *argument).cast_mut().cast::<c_void>()];
        // SAFETY: every kernel takes one Call, which the driver copies; the rest follows from this function's
        // contract.
        let status = unsafe {
            (self.functions.cuLaunchKernel)(
                function,
                grid[0],
                grid[1],
                grid[2],
                block[0],
                block[1],
                block[2],
                shared_bytes,
                stream,
                arguments.as_mut_ptr(),
                std::ptr::null_mut(),
            )
        };
        self.check(status, || format!("cuLaunchKernel of {name} (grid {grid:?}, block {block:?})"))
    }

    /// # Safety
    /// As in the trait.
    unsafe fn is_capturing(&self, stream: Handle) -> Result<bool, GpuError> {
        let mut status = 0;
        // SAFETY: by this function's contract; the out pointer is valid.
        let code = unsafe { (self.functions.cuStreamIsCapturing)(stream, &mut status) };
        self.check(code, || "cuStreamIsCapturing".into())?;
        // CU_STREAM_CAPTURE_STATUS_NONE
        Ok(status != 0)
    }

    fn code(&self) -> &dyn CodeFormat {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::sources::SOURCES;

    #[test]
    fn tensor_cores_are_those_of_the_kernels() {
        let (_, header) = SOURCES.iter().find(|(name, _)| *name == "device/cuda.h").unwrap();
        let (condition, _) = header.split_once("\n#define SPARK_MMA").unwrap();
        let least = condition.rsplit_once(" >= ").unwrap().1.parse::<u32>().unwrap() / 10;
        assert!(!has_tensor_cores(least / 10 - 1) && has_tensor_cores(least / 10) && least % 10 == 0);
    }
}
