//! The library as a plugin of ONNX Runtime 1.24 and later: an execution provider, `SparkExecutionProvider`, that owns
//! memory, copies and streams on AMD and NVIDIA GPUs and takes only the nodes of domain `ai.spark`. All other nodes
//! stay with the session's other providers; those that use the same device share its memory and stream.
//!
//! The operators themselves are the custom operators of [`crate::operators`], registered as on every ONNX Runtime.

pub mod abi;
mod allocator;
mod device;
mod discovery;
mod driver;
mod ep;
mod factory;
mod host;
mod memcpy;
mod pool;
mod stream;
mod transfer;
mod workspace;

use std::ffi::{CStr, c_char};

use ort::sys::OrtApiBase;

use abi::Status;
pub use device::Device;
use host::Host;

/// The provider's name in sessions.
pub const NAME: &CStr = c"SparkExecutionProvider";

/// [`NAME`] as text.
pub const fn name() -> &'static str {
    match NAME.to_str() {
        Ok(name) => name,
        Err(_) => panic!("a name of ASCII"),
    }
}

/// Makes the provider's factory. ONNX Runtime calls this after it has loaded the library for
/// `RegisterExecutionProviderLibrary`; see `onnxruntime_ep_c_api.h`.
///
/// # Safety
/// The arguments must be what ONNX Runtime passes: its table of API tables, and room for `room` factories.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn CreateEpFactories(
    _registered_name: *const c_char,
    base: *const OrtApiBase,
    _logger: *const abi::Logger,
    factories: *mut *mut abi::Factory,
    room: usize,
    count: *mut usize,
) -> Status {
    // SAFETY: `base` is ONNX Runtime's by this function's contract.
    let host = match unsafe { Host::open(base) } {
        Ok(host) => host,
        Err(status) => return status,
    };
    host.answer(|| {
        if room == 0 {
            return Err("ONNX Runtime has no room for a factory".to_owned().into());
        }
        let factory = factory::Factory::create(host)?;
        // SAFETY: there is room for one, and the out pointer is valid.
        unsafe {
            *factories = factory;
            *count = 1;
        }
        Ok(())
    })
}

/// Releases what [`CreateEpFactories`] made.
///
/// # Safety
/// `factory` is of [`CreateEpFactories`], and nothing made by it is left.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ReleaseEpFactory(factory: *mut abi::Factory) -> Status {
    // SAFETY: by this function's contract.
    unsafe { factory::Factory::release(factory) };
    std::ptr::null_mut()
}
