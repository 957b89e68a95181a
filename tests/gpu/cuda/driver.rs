//! The functions of libcuda, by their names there.

use std::error::Error;
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};

use libloading::os::unix::{Library, RTLD_NOW};

/// An object of the driver: a context, a module, a function, a stream, an event, a graph.
pub type Handle = *mut c_void;

/// Device addresses have 64 bits everywhere.
pub type Address = u64;
pub const POINTER_BYTES: usize = size_of::<*const c_void>();

macro_rules! driver {
    ($($name:ident: ($($argument:ty),*);)*) => {
        /// The driver's functions.
        #[allow(non_snake_case)]
        pub struct Driver {
            $(pub $name: unsafe extern "C" fn($($argument),*) -> c_int,)*
            _library: Library,
        }

        impl Driver {
            fn with(library: Library) -> Result<Self, String> {
                Ok(Self {
                    $(
                        // SAFETY: the signature is that of cuda.h in CUDA 11.4 to 13: a function whose signature
                        // changes gets another name. tests/gpu/cuda_sim is checked against that header.
                        $name: unsafe {
                            *library.get(concat!(stringify!($name), "\0").as_bytes()).map_err(|e| e.to_string())?
                        },
                    )*
                    _library: library,
                })
            }
        }
    };
}

driver! {
    cuInit: (c_uint);
    cuDriverGetVersion: (*mut c_int);
    cuDeviceGetCount: (*mut c_int);
    cuDeviceGet: (*mut c_int, c_int);
    cuDeviceGetName: (*mut c_char, c_int, c_int);
    cuDeviceGetAttribute: (*mut c_int, c_int, c_int);
    cuDevicePrimaryCtxRetain: (*mut Handle, c_int);
    cuCtxSetCurrent: (Handle);
    cuCtxSynchronize: ();
    cuModuleLoadData: (*mut Handle, *const c_void);
    cuModuleGetFunction: (*mut Handle, Handle, *const c_char);
    cuMemAlloc_v2: (*mut Address, usize);
    cuMemFree_v2: (Address);
    cuMemcpyHtoD_v2: (Address, *const c_void, usize);
    cuMemcpyDtoH_v2: (*mut c_void, Address, usize);
    cuMemcpyDtoDAsync_v2: (Address, Address, usize, Handle);
    cuLaunchKernel: (
        Handle, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, Handle, *mut *mut c_void, *mut *mut c_void
    );
    cuStreamCreate: (*mut Handle, c_uint);
    cuStreamBeginCapture_v2: (Handle, c_int);
    cuStreamEndCapture: (Handle, *mut Handle);
    cuGraphInstantiateWithFlags: (*mut Handle, Handle, u64);
    cuGraphDestroy: (Handle);
    cuGraphExecDestroy: (Handle);
    cuGraphLaunch: (Handle, Handle);
    cuEventCreate: (*mut Handle, c_uint);
    cuEventRecord: (Handle, Handle);
    cuEventSynchronize: (Handle);
    cuEventElapsedTime: (*mut f32, Handle, Handle);
    cuGetErrorName: (c_int, *mut *const c_char);
    cuGetErrorString: (c_int, *mut *const c_char);
}

impl Driver {
    /// The driver of this machine, ready for use.
    pub fn open() -> Result<Self, String> {
        // SAFETY: NVIDIA's driver, by its name; loading it runs its initialisers and nothing of ours depends on them.
        let library = unsafe { Library::open(Some("libcuda.so.1"), RTLD_NOW) };
        // The reason is the error's source.
        let library = library.map_err(|e| e.source().map_or(e.to_string(), ToString::to_string))?;
        let driver = Self::with(library)?;
        // SAFETY: takes a number.
        driver.check(unsafe { (driver.cuInit)(0) }, || "cuInit".into())?;
        Ok(driver)
    }

    /// A status as an error that names the call.
    pub fn check(&self, status: c_int, call: impl FnOnce() -> String) -> Result<(), String> {
        if status == 0 {
            return Ok(());
        }
        let text = |get: unsafe extern "C" fn(c_int, *mut *const c_char) -> c_int| {
            let mut text = std::ptr::null();
            // SAFETY: any number may be asked for, and the out pointer is valid.
            if unsafe { get(status, &mut text) } != 0 || text.is_null() {
                return "unknown".into();
            }
            // SAFETY: the text is a constant of the driver's.
            unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
        };
        Err(format!("{} failed: {} ({status}), {}", call(), text(self.cuGetErrorName), text(self.cuGetErrorString)))
    }
}
