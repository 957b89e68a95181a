//! Calls to ONNX Runtime, and the statuses that are returned to it.

use std::ffi::{CStr, CString, c_int, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::OnceLock;

use ort::sys::OrtApiBase;

use super::abi::{Api, EpApi, Status, VERSION};
use crate::operators::panic_message;

/// The code of every error of the provider. Not ORT_EP_FAIL: on that code ONNX Runtime's Python package creates a new
/// session on the CPU alone, and continues as if nothing had happened.
const ORT_FAIL: c_int = 1;

/// The functions of the ONNX Runtime that this file serves.
#[derive(Clone, Copy, Debug)]
pub struct Host {
    pub api: Api,
    pub ep: EpApi,
}

/// Why a function of the provider failed.
#[derive(Debug)]
pub enum Failure {
    /// A status of ONNX Runtime, passed on.
    Status(Status),
    /// An error of the provider.
    Message(String),
}

impl From<String> for Failure {
    fn from(message: String) -> Self {
        Self::Message(message)
    }
}

/// A status of ONNX Runtime as a result.
pub fn ok(status: Status) -> Result<(), Failure> {
    if status.is_null() { Ok(()) } else { Err(Failure::Status(status)) }
}

static HOST: OnceLock<Host> = OnceLock::new();

impl Host {
    /// The ONNX Runtime of `base`.
    ///
    /// # Safety
    /// `base` is ONNX Runtime's.
    ///
    /// # Errors
    /// With a status to return, if it is older than 1.24 or another ONNX Runtime is already served.
    pub unsafe fn open(base: *const OrtApiBase) -> Result<&'static Self, Status> {
        // SAFETY: by this function's contract.
        let (first, table, version) =
            unsafe { (((*base).GetApi)(1), ((*base).GetApi)(VERSION), ((*base).GetVersionString)()) };
        let refuse = |problem: String| {
            let message = CString::new(format!("libspark_ort: {problem}")).unwrap_or_default();
            // SAFETY: the first entry of the table is the same in every version.
            unsafe { ((*first).CreateStatus)(ort::sys::OrtErrorCode::ORT_FAIL, message.as_ptr()) }.0
        };
        if table.is_null() {
            // SAFETY: ONNX Runtime's version is a constant.
            let version = unsafe { CStr::from_ptr(version) }.to_string_lossy();
            return Err(refuse(format!("a plugin needs ONNX Runtime 1.{VERSION} or later, this is {version}")));
        }
        // SAFETY: the table is of the version asked for.
        let api = unsafe { Api::read(table.cast()) };
        // SAFETY: the table of 1.24 has this function, whose result is a table of the same version.
        let ep = unsafe { EpApi::read((api.GetEpApi)()) };
        let host = HOST.get_or_init(|| Self { api, ep });
        match host.api.CreateStatus as usize == api.CreateStatus as usize {
            true => Ok(host),
            false => {
                Err(refuse("this file already serves another ONNX Runtime in this process; load a copy of it".into()))
            }
        }
    }

    /// The ONNX Runtime that registered the library as a plugin, if one did.
    pub fn get() -> Option<&'static Self> {
        HOST.get()
    }

    /// Runs `work`; turns an error or a panic into a status.
    pub fn answer(&self, work: impl FnOnce() -> Result<(), Failure>) -> Status {
        let problem = match catch_unwind(AssertUnwindSafe(work)) {
            Ok(Ok(())) => return std::ptr::null_mut(),
            Ok(Err(Failure::Status(status))) => return status,
            Ok(Err(Failure::Message(message))) => message,
            Err(panic) => format!("internal error: {}", panic_message(&*panic)),
        };
        let message =
            CString::new(format!("SparkExecutionProvider: {}", problem.replace('\0', ""))).unwrap_or_default();
        // SAFETY: the message is a C string, which ONNX Runtime copies.
        unsafe { (self.api.CreateStatus)(ORT_FAIL, message.as_ptr()) }
    }

    /// PCI vendor and memory id of an OrtMemoryInfo.
    ///
    /// # Safety
    /// `info` is ONNX Runtime's.
    pub unsafe fn memory_of(&self, info: *const c_void) -> Result<(u32, i32), Failure> {
        let mut id = 0;
        // SAFETY: by this function's contract, and the out pointer is valid.
        unsafe {
            ok((self.api.MemoryInfoGetId)(info.cast(), &mut id))?;
            Ok(((self.api.MemoryInfoGetVendorId)(info.cast()), id))
        }
    }
}
