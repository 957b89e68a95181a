//! What a GPU driver must provide to run kernels: [`Runtime`], implemented by `hip` and `cuda`.

use std::ffi::{CStr, c_char, c_void};
use std::fmt::Debug;

use super::error::GpuError;
use super::params::Call;
use super::plan;

/// A handle of a driver: a context, a module, a function, a stream.
pub type Handle = *mut c_void;

/// The manufacturer of a GPU, which determines the driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Vendor {
    /// AMD, through HIP
    Amd,
    /// NVIDIA, through the CUDA driver
    Nvidia,
}

/// Properties of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Properties {
    /// The architecture of its code, such as gfx90a:sramecc+:xnack- or sm_90.
    pub arch: String,
    /// The properties that a plan needs.
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

/// A driver, opened once per process. Modules and functions are never unloaded.
pub(super) trait Runtime: Debug + Send + Sync {
    /// Makes `ordinal` the calling thread's device, and returns the argument for [`Runtime::leave`].
    ///
    /// # Errors
    /// If there is no such device.
    fn enter(&self, ordinal: i32) -> Result<Previous, GpuError>;

    /// Restores the device that was current before [`Runtime::enter`].
    fn leave(&self, previous: Previous);

    /// The properties of device `ordinal`.
    ///
    /// # Errors
    /// If it cannot be queried, or the kernels cannot run on it.
    fn properties(&self, ordinal: i32) -> Result<Properties, GpuError>;

    /// Loads `code`, which passed [`CodeFormat::is_code`], on the current device.
    ///
    /// # Errors
    /// If the device or the driver cannot run it.
    fn load(&self, code: &[u8]) -> Result<Handle, GpuError>;

    /// The kernel `name` of a module loaded by this runtime, allowed to use `shared_bytes` of shared memory.
    ///
    /// # Errors
    /// If there is no such kernel.
    fn function(&self, module: Handle, name: &CStr, shared_bytes: u32) -> Result<Handle, GpuError>;

    /// Queues a kernel on `stream`, null for the default one; the argument is copied before this returns.
    ///
    /// # Safety
    /// `function` is one of this runtime's kernels on the current device, and the memory that it accesses through
    /// pointers in the argument stays valid until the stream has run it.
    ///
    /// # Errors
    /// If the driver refuses.
    unsafe fn launch(&self, launch: &KernelLaunch<'_>, stream: Handle) -> Result<(), GpuError>;

    /// Whether work queued on `stream` is being captured for later replay instead of run.
    ///
    /// # Safety
    /// `stream` belongs to the current device, or is null.
    ///
    /// # Errors
    /// If the driver cannot tell.
    unsafe fn is_capturing(&self, stream: Handle) -> Result<bool, GpuError>;

    /// The format and sources of code for its devices.
    fn code(&self) -> &dyn CodeFormat;
}

/// Code for the devices of a runtime: how to recognise it, and where it comes from.
pub(super) trait CodeFormat {
    /// Name of its cache folder.
    fn folder(&self) -> &'static str;

    /// What compiled code depends on besides architecture and sources: compiler version and options.
    ///
    /// # Errors
    /// If the driver cannot tell.
    fn compiler(&self) -> Result<String, GpuError>;

    /// Whether `code` starts like code for these devices, and is complete as far as its header tells.
    fn is_code(&self, code: &[u8]) -> bool;

    /// The embedded code for `arch`.
    fn carried(&self, arch: &str) -> Option<&'static [u8]>;

    /// Compiles the kernels for `arch`.
    ///
    /// # Errors
    /// What is missing, or the compiler's messages.
    fn compile(&self, arch: &str) -> Result<Vec<u8>, String>;

    /// For error messages: which code is embedded, and what to do if that is not enough.
    fn advice(&self, arch: &str) -> (String, String);
}

/// The device that was current before, in the form that the runtime needs.
#[derive(Debug)]
pub(super) struct Previous(pub(super) Option<i32>);

/// Keeps a device current on the calling thread.
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

/// A driver's text, "unknown" if it is null.
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

/// Why a shared library could not be opened: libloading keeps the loader's message in the error's source.
pub(super) fn reason(error: &libloading::Error) -> String {
    std::error::Error::source(error).map_or(error.to_string(), ToString::to_string)
}

/// Declares a structure of functions of a shared library, by their names there, and `of`, which looks them up.
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
