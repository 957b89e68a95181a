//! What a GPU's driver must offer to run kernels: [`Runtime`], which `hip` and `cuda` implement.

use std::ffi::{CStr, c_char, c_void};
use std::fmt::Debug;

use super::error::GpuError;
use super::params::Call;
use super::plan;

/// An object of a driver: a context, a module, a function, a stream.
pub type Handle = *mut c_void;

/// Who makes a GPU, and with it the driver that runs kernels there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Vendor {
    /// AMD, by HIP
    Amd,
    /// NVIDIA, by the CUDA driver
    Nvidia,
}

/// What is asked of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Properties {
    /// What its code is compiled for, such as gfx90a:sramecc+:xnack- or sm_90.
    pub arch: String,
    /// What a plan must know of it.
    pub for_plan: plan::Device,
}

/// A launch of one kernel.
pub(super) struct KernelLaunch<'l> {
    pub(super) name: &'l str,
    pub(super) function: Handle,
    pub(super) grid: [u32; 3],
    pub(super) block: [u32; 3],
    /// Bytes of shared memory (LDS), requested at launch.
    pub(super) shared_bytes: u32,
    /// The one argument of every kernel.
    pub(super) argument: &'l Call,
}

/// A driver, opened once for the process. Modules and functions are never unloaded.
pub(super) trait Runtime: Debug + Send + Sync {
    /// Makes `ordinal` the calling thread's device, and gives what [`Runtime::leave`] takes.
    ///
    /// # Errors
    /// If there is no such device.
    fn enter(&self, ordinal: i32) -> Result<Previous, GpuError>;

    /// Makes the device current that was before [`Runtime::enter`].
    fn leave(&self, previous: Previous);

    /// What device `ordinal` is.
    ///
    /// # Errors
    /// If it cannot be queried, or the kernels cannot run on it.
    fn properties(&self, ordinal: i32) -> Result<Properties, GpuError>;

    /// Loads `code`, which [`CodeFormat::is_code`] took for code, on the current device.
    ///
    /// # Errors
    /// If the device or the driver is not one for it.
    fn load(&self, code: &[u8]) -> Result<Handle, GpuError>;

    /// The kernel `name` of a module that this runtime loaded, allowed to take `shared_bytes` of shared memory.
    ///
    /// # Errors
    /// If there is none.
    fn function(&self, module: Handle, name: &CStr, shared_bytes: u32) -> Result<Handle, GpuError>;

    /// Queues a kernel on `stream`, null for the default one; the argument is copied before this returns.
    ///
    /// # Safety
    /// `function` is one of this runtime's kernels, on the current device, and what it reads and writes through
    /// pointers in the argument stays valid until the stream has run it.
    ///
    /// # Errors
    /// If the driver refuses.
    unsafe fn launch(&self, launch: &KernelLaunch<'_>, stream: Handle) -> Result<(), GpuError>;

    /// Whether what is queued on `stream` is recorded to be run again later, rather than run.
    ///
    /// # Safety
    /// `stream` is one of the current device, or null.
    ///
    /// # Errors
    /// If the driver does not say.
    unsafe fn is_capturing(&self, stream: Handle) -> Result<bool, GpuError>;

    /// Where code for its devices comes from.
    fn code(&self) -> &dyn CodeFormat;
}

/// Code for the devices of a runtime: what it looks like, and where it comes from.
pub(super) trait CodeFormat {
    /// The folder of its cache.
    fn folder(&self) -> &'static str;

    /// What, beside architecture and sources, compiled code depends on: compiler version and options.
    ///
    /// # Errors
    /// If the driver does not say.
    fn compiler(&self) -> Result<String, GpuError>;

    /// Whether `code` begins as code for these devices does, and is whole as far as its header tells.
    fn is_code(&self, code: &[u8]) -> bool;

    /// The code for `arch` that this library carries.
    fn carried(&self, arch: &str) -> Option<&'static [u8]>;

    /// Compiles the kernels for `arch`.
    ///
    /// # Errors
    /// Says what is missing, or what the compiler said.
    fn compile(&self, arch: &str) -> Result<Vec<u8>, String>;

    /// What this library carries, and what to do where that is not enough, for people.
    fn advice(&self, arch: &str) -> (String, String);
}

/// The device that was current before another one, as a runtime notes it.
#[derive(Debug)]
pub(super) struct Previous(pub(super) Option<i32>);

/// A device being current on the calling thread.
pub(crate) struct Current<'r> {
    runtime: &'r dyn Runtime,
    previous: Option<Previous>,
}

impl<'r> Current<'r> {
    pub(super) fn new(runtime: &'r dyn Runtime, ordinal: i32) -> Result<Self, GpuError> {
        Ok(Self { runtime, previous: Some(runtime.enter(ordinal)?) })
    }
}

impl Drop for Current<'_> {
    fn drop(&mut self) {
        if let Some(previous) = self.previous.take() {
            self.runtime.leave(previous);
        }
    }
}

/// A driver's text, "unknown" where it gives none.
///
/// # Safety
/// `text` is null or a constant C string.
pub(super) unsafe fn text(text: *const c_char) -> String {
    if text.is_null() {
        return "unknown".into();
    }
    // SAFETY: by this function's contract.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}

/// Why a shared library could not be opened: libloading's own message keeps the loader's words in its source.
pub(super) fn reason(error: &libloading::Error) -> String {
    std::error::Error::source(error).map_or(error.to_string(), ToString::to_string)
}

/// Declares a structure of functions of a shared library, by their names there, and `of`, which finds them.
macro_rules! functions {
    ($(#[$about:meta])* $structure:ident { $($name:ident: ($($argument:ty),*);)* }) => {
        $(#[$about])*
        #[allow(non_snake_case)]
        #[derive(Debug)]
        struct $structure {
            $($name: unsafe extern "C" fn($($argument),*) -> std::ffi::c_int,)*
        }

        impl $structure {
            fn of(library: &libloading::os::unix::Library) -> Result<Self, String> {
                Ok(Self {
                    $(
                        // SAFETY: the signature is that of the library's header, the same in all versions opened here.
                        $name: unsafe {
                            *library.get(concat!(stringify!($name), "\0").as_bytes()).map_err(|e| e.to_string())?
                        },
                    )*
                })
            }
        }
    };
}
pub(crate) use functions;
