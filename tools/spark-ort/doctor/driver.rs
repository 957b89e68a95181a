//! A driver of GPUs, as far as it says what it is and which devices it has.

use std::ffi::{CStr, c_char, c_int, c_uint};

use libloading::Library;
use serde::Serialize;

/// A driver that could be opened.
#[derive(Serialize)]
pub struct Driver {
    library: &'static str,
    version: Option<String>,
    /// Names of the devices, or the driver's error number.
    devices: Result<Vec<String>, c_int>,
}

/// What a vendor calls the functions; those of HIP and CUDA have the same types.
struct Names {
    /// `None`: the others do it.
    initialise: Option<&'static [u8]>,
    version: &'static [u8],
    count: &'static [u8],
    name: &'static [u8],
}

/// HIP: its libraries without a version and of ROCm 7, 6 and 5.
pub fn hip() -> Result<Driver, String> {
    const LIBRARIES: [&str; 4] = ["libamdhip64.so", "libamdhip64.so.7", "libamdhip64.so.6", "libamdhip64.so.5"];
    let names = Names {
        initialise: None,
        version: b"hipRuntimeGetVersion\0",
        count: b"hipGetDeviceCount\0",
        name: b"hipDeviceGetName\0",
    };
    let version = |number| format!("{}.{}.{}", number / 10_000_000, number / 100_000 % 100, number % 100_000);
    open(&LIBRARIES, &names, version)
}

/// The CUDA driver, whose version is the newest CUDA that it supports.
pub fn cuda() -> Result<Driver, String> {
    let names = Names {
        initialise: Some(b"cuInit\0"),
        version: b"cuDriverGetVersion\0",
        count: b"cuDeviceGetCount\0",
        name: b"cuDeviceGetName\0",
    };
    open(&["libcuda.so.1"], &names, |number| format!("CUDA {}.{}", number / 1000, number % 1000 / 10))
}

fn open(libraries: &[&'static str], names: &Names, show: impl Fn(c_int) -> String) -> Result<Driver, String> {
    // SAFETY: initialisers of the vendors' drivers have no requirements.
    let opened = libraries.iter().find_map(|&name| unsafe { Library::new(name) }.ok().map(|library| (name, library)));
    let (name, library) = opened.ok_or_else(|| format!("none: {} cannot be opened", libraries[0]))?;
    let driver = Driver {
        library: name,
        version: number(&library, names.version).ok().map(show),
        devices: devices(&library, names),
    };
    // Never unloaded, because drivers start threads.
    std::mem::forget(library);
    Ok(driver)
}

/// The library and its version, or why there is none.
pub fn line(driver: &Result<Driver, String>) -> String {
    match driver {
        Ok(Driver { library, version, .. }) => {
            format!("{library}, {}", version.as_deref().unwrap_or("of unknown version"))
        }
        Err(problem) => problem.clone(),
    }
}

/// The names of the driver's devices, or why it has none.
pub fn devices_of(driver: &Result<Driver, String>) -> Result<&[String], String> {
    match driver.as_ref().map(|driver| &driver.devices) {
        Ok(Ok(names)) if names.is_empty() => Err("none".into()),
        Ok(Ok(names)) => Ok(names),
        Ok(Err(error)) => Err(format!("error {error} of the driver")),
        Err(problem) => Err(problem.clone()),
    }
}

type Initialise = unsafe extern "C" fn(c_uint) -> c_int;
type GetInt = unsafe extern "C" fn(*mut c_int) -> c_int;
type GetName = unsafe extern "C" fn(*mut c_char, c_int, c_int) -> c_int;

/// The result of a function with an out parameter for a number.
fn number(library: &Library, function: &[u8]) -> Result<c_int, c_int> {
    // SAFETY: callers pass names of functions with this type in hip_runtime_api.h and cuda.h.
    let get = unsafe { library.get::<GetInt>(function) }.map_err(|_| -1)?;
    let mut value = 0;
    // SAFETY: the out pointer is valid.
    match unsafe { get(&mut value) } {
        0 => Ok(value),
        error => Err(error),
    }
}

fn devices(library: &Library, names: &Names) -> Result<Vec<String>, c_int> {
    /// hipErrorNoDevice and CUDA_ERROR_NO_DEVICE
    const NO_DEVICE: c_int = 100;
    let initialised = match names.initialise {
        // SAFETY: the type is that of cuda.h, and the argument a number.
        Some(name) => unsafe { library.get::<Initialise>(name).map_err(|_| -1)?(0) },
        None => 0,
    };
    let counted = if initialised == 0 { number(library, names.count) } else { Err(initialised) };
    let count = match counted {
        Err(NO_DEVICE) => 0,
        count => count?,
    };
    // SAFETY: the type is that of both headers.
    let get_name = unsafe { library.get::<GetName>(names.name) }.ok();
    let name = |device: c_int| {
        let mut text = [0 as c_char; 256];
        let get_name = get_name.as_ref()?;
        // SAFETY: `text` has room for the length passed, which is one less for the terminating zero. The CUDA driver's
        // handle of a device is its number.
        let error = unsafe { get_name(text.as_mut_ptr(), text.len() as c_int - 1, device) };
        // SAFETY: `text` ends with a zero, whatever was written.
        (error == 0).then(|| unsafe { CStr::from_ptr(text.as_ptr()) }.to_string_lossy().into_owned())
    };
    Ok((0..count).map(|device| name(device).unwrap_or_else(|| format!("device {device}"))).collect())
}
