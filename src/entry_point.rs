//! The entry point of the shared library, `RegisterCustomOps`, by which any ONNX Runtime host loads the operators.

use std::ffi::{CStr, CString, c_char};
use std::panic::catch_unwind;
use std::sync::Mutex;

use ort::AsPointer;
use ort::operator::OperatorDomain;
use ort::sys::{ORT_API_VERSION, OrtApi, OrtApiBase, OrtErrorCode, OrtSessionOptions, OrtStatusPtr};

use crate::operators::{domain, panic_message};
use crate::ort_compat;

/// Registers the operators with a host's session options. ONNX Runtime calls this after it has loaded the library for
/// `RegisterCustomOpsLibrary`; see `onnxruntime_c_api.h`.
///
/// # Safety
/// `options` and `base` must be what ONNX Runtime passes: session options, and its table of API tables.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn RegisterCustomOps(options: *mut OrtSessionOptions, base: *const OrtApiBase) -> OrtStatusPtr {
    // SAFETY: `base` is ONNX Runtime's by this function's contract; every version of it has the first API table.
    let oldest = unsafe { ((*base).GetApi)(1) };
    let problem = match catch_unwind(|| {
        // SAFETY: by this function's contract.
        unsafe { register(options, base) }
    }) {
        Ok(Ok(status)) => return status,
        Ok(Err(problem)) => problem,
        Err(panic) => format!("internal error: {}", panic_message(&*panic)),
    };
    let message = CString::new(format!("libspark_ort: {}", problem.replace('\0', ""))).unwrap_or_default();
    if oldest.is_null() {
        // No ONNX Runtime lacks its first table; without one there is no way to return an error.
        return OrtStatusPtr::default();
    }
    // SAFETY: the first entries of the table, CreateStatus the very first, are the same in every version.
    unsafe { ((*oldest).CreateStatus)(OrtErrorCode::ORT_FAIL, message.as_ptr()) }
}

/// The domain, made once and for as long as the library is loaded: sessions refer to it.
struct Registered(OperatorDomain);

// SAFETY: after it was filled, the domain is only read, by ONNX Runtime.
unsafe impl Send for Registered {}

static REGISTERED: Mutex<Option<Registered>> = Mutex::new(None);

/// # Safety
/// As for [`RegisterCustomOps`].
unsafe fn register(options: *mut OrtSessionOptions, base: *const OrtApiBase) -> Result<OrtStatusPtr, String> {
    // SAFETY: `base` is ONNX Runtime's.
    let (table, version) = unsafe { (((*base).GetApi)(ORT_API_VERSION), text(((*base).GetVersionString)())) };
    if table.is_null() {
        return Err(format!("ONNX Runtime 1.{ORT_API_VERSION} or newer is needed, this is {version}"));
    }
    // SAFETY: the table is of the version asked for and lives as long as ONNX Runtime.
    let api: OrtApi = unsafe { std::ptr::read(table) };
    let add_domain = api.AddCustomOpDomain;
    let mut registered = REGISTERED.lock().unwrap_or_else(|e| e.into_inner());
    let create_status = api.CreateStatus as usize;
    ort::set_api(ort_compat::adapt(api, &version));
    if ort::api().CreateStatus as usize != create_status {
        return Err("this file already serves another ONNX Runtime in this process; load a copy of it".into());
    }
    if registered.is_none() {
        *registered = Some(Registered(domain().map_err(|e| e.to_string())?));
    }
    let domain = registered.as_ref().map_or(std::ptr::null_mut(), |r| r.0.ptr().cast_mut());
    // SAFETY: both are ONNX Runtime's, and the domain outlives every session.
    Ok(unsafe { add_domain(options, domain) })
}

/// # Safety
/// `text` must be null or a C string.
unsafe fn text(text: *const c_char) -> String {
    if text.is_null() {
        return "of unknown version".into();
    }
    // SAFETY: by this function's contract.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}
