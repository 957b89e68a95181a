//! Loads ONNX Runtime into this process, and makes this crate's operators available in it.

use std::ffi::{CStr, c_char, c_int};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock};

use libloading::Library;
use ort::environment::Environment;
use ort::logging::LogLevel;
use ort::session::Session;
use ort::session::builder::SessionBuilder;
use ort::sys::{ORT_API_VERSION, OrtApi, OrtApiBase};

use super::error::{Error, Tried};
use super::locate::places;
use crate::ort_compat;

/// The ONNX Runtime of this process.
#[derive(Debug)]
pub struct Runtime {
    version: String,
    path: PathBuf,
    environment: Environment,
}

impl Runtime {
    /// Such as "1.22.1".
    pub fn version(&self) -> &str {
        &self.version
    }

    /// The shared library.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Creates a session with this crate's operators.
    ///
    /// # Errors
    /// Errors of `make`, or if ONNX Runtime rejects the operators.
    pub fn session(&self, make: impl FnOnce(SessionBuilder) -> ort::Result<Session>) -> ort::Result<Session> {
        // ONNX Runtime may reject a custom domain while several threads create their first sessions with it.
        static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
        let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(|e| e.into_inner());
        let builder = Session::builder(&self.environment)?.with_log_level(LogLevel::Fatal)?;
        make(builder.with_operators(crate::operators::domain()?)?)
    }

    /// Creates a session with the operators of the shared library at `library`, as hosts in other languages do.
    ///
    /// # Errors
    /// Errors of `make`, or if the library cannot be loaded or rejects this ONNX Runtime.
    pub fn session_with_library(
        &self,
        library: &Path,
        make: impl FnOnce(SessionBuilder) -> ort::Result<Session>,
    ) -> ort::Result<Session> {
        let builder = Session::builder(&self.environment)?.with_log_level(LogLevel::Fatal)?;
        make(builder.with_operator_library(library)?)
    }

    /// The execution providers built into it, by their names in ONNX Runtime, in order of preference.
    pub fn providers(&self) -> Vec<String> {
        let (mut names, mut count): (*mut *mut c_char, c_int) = (std::ptr::null_mut(), 0);
        // SAFETY: both out pointers are valid.
        let failed = unsafe { (ort::api().GetAvailableProviders)(&mut names, &mut count) };
        if !failed.0.is_null() || names.is_null() {
            return Vec::new();
        }
        let texts = (0..usize::try_from(count).unwrap_or(0)).map(|i| {
            // SAFETY: ONNX Runtime returned `count` C strings.
            unsafe { CStr::from_ptr(*names.add(i)) }.to_string_lossy().into_owned()
        });
        let texts = texts.collect();
        // SAFETY: names and count are those that were returned; they are not used again.
        let _ = unsafe { (ort::api().ReleaseAvailableProviders)(names, count) };
        texts
    }
}

static LOADED: OnceLock<Runtime> = OnceLock::new();

/// Whether [`load`] has succeeded. Does not search.
pub(crate) fn is_loaded() -> bool {
    LOADED.get().is_some()
}

/// Finds and loads ONNX Runtime; later calls return the same one. ORT_DYLIB_PATH names its shared library; without it,
/// the `onnxruntime` package of the active Python is used, else the library found by the system's loader.
///
/// # Errors
/// No recent enough library can be loaded; the error lists every place tried. A later attempt may succeed.
pub fn load() -> Result<&'static Runtime, Error> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(|e| e.into_inner());
    if let Some(runtime) = LOADED.get() {
        return Ok(runtime);
    }
    let opened = first_usable()?;
    let runtime = opened.into_runtime()?;
    Ok(LOADED.get_or_init(|| runtime))
}

fn first_usable() -> Result<Opened, Error> {
    let mut tried = Vec::new();
    for place in places(|name| std::env::var_os(name)) {
        match place.library.and_then(|path| open(&path)) {
            Ok(opened) => return Ok(opened),
            Err(problem) => tried.push(Tried { place: place.name, problem }),
        }
    }
    Err(Error::NoRuntime { tried })
}

/// A library that is an ONNX Runtime and recent enough.
struct Opened {
    api: OrtApi,
    version: String,
    path: PathBuf,
}

fn open(path: &Path) -> Result<Opened, String> {
    // SAFETY: ONNX Runtime's initialisers have no requirements; by its name the file is an ONNX Runtime.
    let library = unsafe { Library::new(path) }.map_err(|e| {
        // The error itself only states which function failed.
        let reason = std::error::Error::source(&e).map_or(e.to_string(), |source| source.to_string());
        format!("it cannot be loaded: {reason}")
    })?;
    type GetApiBase = unsafe extern "C" fn() -> *const OrtApiBase;
    // SAFETY: the type is that of onnxruntime_c_api.h.
    let get = unsafe { library.get::<GetApiBase>(b"OrtGetApiBase\0") };
    let get = *get.map_err(|_| "it is no ONNX Runtime: it has no OrtGetApiBase".to_string())?;
    // SAFETY: as above; every version of the base has these two functions, and the version is a C string.
    let (base, version) = unsafe {
        let base = get();
        (base, CStr::from_ptr(((*base).GetVersionString)()).to_string_lossy().into_owned())
    };
    let too_old = || format!("it is version {version}, 1.{ORT_API_VERSION} or later is needed");
    // When asked for a table that it lacks, ONNX Runtime also writes to stderr.
    let minor = version.strip_prefix("1.").and_then(|rest| rest.split('.').next()?.parse::<u32>().ok());
    if minor.is_some_and(|minor| minor < ORT_API_VERSION) {
        return Err(too_old());
    }
    // SAFETY: `base` is ONNX Runtime's.
    let table = unsafe { ((*base).GetApi)(ORT_API_VERSION) };
    if table.is_null() {
        return Err(too_old());
    }
    // SAFETY: the table has the requested version.
    let api = unsafe { std::ptr::read(table) };
    let path = file_of(get as *const std::ffi::c_void).unwrap_or_else(|| path.into());
    // Its functions are used until the process ends.
    std::mem::forget(library);
    Ok(Opened { api, version, path })
}

/// The file that contains a function; a name for the system's loader alone would not give its path.
fn file_of(function: *const std::ffi::c_void) -> Option<PathBuf> {
    // SAFETY: an all-zero Dl_info is valid: null pointers.
    let mut info: libc::Dl_info = unsafe { std::mem::zeroed() };
    // SAFETY: `info` is writable, and any address is allowed.
    let found = unsafe { libc::dladdr(function, &mut info) } != 0 && !info.dli_fname.is_null();
    // SAFETY: dladdr returns a C string that lives as long as the library.
    found.then(|| PathBuf::from(unsafe { CStr::from_ptr(info.dli_fname) }.to_string_lossy().into_owned()))
}

impl Opened {
    fn into_runtime(self) -> Result<Runtime, Error> {
        let Self { api, version, path } = self;
        if !ort::set_api(ort_compat::adapt(api, &version)) {
            return Err(Error::OtherRuntime { path });
        }
        // Failures are returned as errors too, and warnings about the machine do not concern users of a model.
        let environment = ort::init().with_name("spark-ort").with_telemetry(false);
        let environment = environment.with_logger(Arc::new(|level, _, _, place, message| {
            if level == LogLevel::Fatal {
                eprintln!("ONNX Runtime: {message} ({place})");
            }
        }));
        let environment = environment.build()?;
        environment.set_log_level(LogLevel::Fatal);
        Ok(Runtime { version, path, environment })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_with_a_library_is_said() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("libonnxruntime.so");
        std::fs::write(&file, "not a library").unwrap();
        let malformed = open(&file).err().unwrap();
        assert!(
            malformed.starts_with("it cannot be loaded: ") && malformed.contains("libonnxruntime.so: "),
            "{malformed}"
        );
        let other = open(Path::new("libc.so.6")).err().unwrap();
        assert_eq!(other, "it is no ONNX Runtime: it has no OrtGetApiBase");
    }

    #[test]
    fn every_place_is_in_the_error() {
        let tried = |place: &str, problem: &str| Tried { place: place.into(), problem: problem.into() };
        let error = Error::NoRuntime { tried: vec![tried("here", "empty"), tried("there", "too old")] }.to_string();
        assert!(error.contains("\n  - here: empty\n  - there: too old\n"), "{error}");
        assert!(error.contains("pip install onnxruntime") && error.contains("ORT_DYLIB_PATH"), "{error}");
    }
}
