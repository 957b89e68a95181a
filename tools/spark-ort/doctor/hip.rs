//! AMD GPUs: whether the HIP runtime can be opened, and which devices the runtime and the kernel driver report.

use std::ffi::{CStr, c_char, c_int};
use std::fs;

use libloading::Library;
use serde::Serialize;

/// Names of the runtime: unversioned, and for ROCm 7, 6 and 5.
const LIBRARIES: [&str; 4] = ["libamdhip64.so", "libamdhip64.so.7", "libamdhip64.so.6", "libamdhip64.so.5"];

/// The kernel driver's description of its devices, one folder each.
const DRIVER: &str = "/sys/class/kfd/kfd/topology/nodes";

#[derive(Serialize)]
pub struct Gpu {
    /// The runtime, or why it was not found.
    runtime: Result<Hip, String>,
    /// Processors of the driver's devices, such as gfx942.
    driver: Vec<String>,
}

#[derive(Serialize)]
struct Hip {
    library: &'static str,
    version: Option<String>,
    /// Names of the devices, or the runtime's error number.
    devices: Result<Vec<String>, c_int>,
}

pub fn look() -> Gpu {
    Gpu { runtime: open(), driver: driver() }
}

impl Gpu {
    pub fn runtime_line(&self) -> String {
        match &self.runtime {
            Ok(Hip { library, version, .. }) => {
                format!("{library}, {}", version.as_deref().unwrap_or("of unknown version"))
            }
            Err(problem) => problem.clone(),
        }
    }

    pub fn devices_line(&self) -> String {
        let driver = match self.driver.is_empty() {
            true => "none known to the kernel driver".to_string(),
            false => format!("kernel driver: {}", self.driver.join(", ")),
        };
        match self.runtime.as_ref().map(|hip| &hip.devices) {
            Ok(Ok(names)) if names.is_empty() => format!("none; {driver}"),
            Ok(Ok(names)) => format!("{}; {driver}", names.join(", ")),
            Ok(Err(error)) => format!("HIP error {error}; {driver}"),
            Err(_) => driver,
        }
    }
}

fn open() -> Result<Hip, String> {
    // SAFETY: initialisers of the HIP runtime have no requirements.
    let opened = LIBRARIES.iter().find_map(|&name| unsafe { Library::new(name) }.ok().map(|library| (name, library)));
    let (name, library) = opened.ok_or_else(|| format!("none: {} cannot be opened", LIBRARIES[0]))?;
    let hip = Hip { library: name, version: version(&library), devices: devices(&library) };
    // Never unloaded, because the runtime starts threads.
    std::mem::forget(library);
    Ok(hip)
}

type GetInt = unsafe extern "C" fn(*mut c_int) -> c_int;
type GetName = unsafe extern "C" fn(*mut c_char, c_int, c_int) -> c_int;

/// The result of a function with an out parameter for a number.
fn number(library: &Library, function: &[u8]) -> Result<c_int, c_int> {
    // SAFETY: callers pass names of functions with this type in hip_runtime_api.h.
    let get = unsafe { library.get::<GetInt>(function) }.map_err(|_| -1)?;
    let mut value = 0;
    // SAFETY: the out pointer is valid.
    match unsafe { get(&mut value) } {
        0 => Ok(value),
        error => Err(error),
    }
}

fn version(library: &Library) -> Option<String> {
    let number = number(library, b"hipRuntimeGetVersion\0").ok()?;
    Some(format!("{}.{}.{}", number / 10_000_000, number / 100_000 % 100, number % 100_000))
}

fn devices(library: &Library) -> Result<Vec<String>, c_int> {
    let count = match number(library, b"hipGetDeviceCount\0") {
        // hipErrorNoDevice
        Err(100) => 0,
        count => count?,
    };
    // SAFETY: the type is that of hip_runtime_api.h.
    let get_name = unsafe { library.get::<GetName>(b"hipDeviceGetName\0") }.ok();
    let name = |device: c_int| {
        let mut text = [0 as c_char; 256];
        let get_name = get_name.as_ref()?;
        // SAFETY: `text` has room for the length passed, which is one less for the terminating zero.
        let error = unsafe { get_name(text.as_mut_ptr(), text.len() as c_int - 1, device) };
        // SAFETY: `text` ends with a zero, whatever was written.
        (error == 0).then(|| unsafe { CStr::from_ptr(text.as_ptr()) }.to_string_lossy().into_owned())
    };
    Ok((0..count).map(|device| name(device).unwrap_or_else(|| format!("device {device}"))).collect())
}

fn driver() -> Vec<String> {
    let folders = fs::read_dir(DRIVER).into_iter().flatten().flatten();
    let texts = folders.filter_map(|folder| fs::read_to_string(folder.path().join("properties")).ok());
    texts.filter_map(|text| processor(&text)).collect()
}

/// The processor in a device's properties; None for a CPU.
fn processor(properties: &str) -> Option<String> {
    let line = properties.lines().find_map(|line| line.strip_prefix("gfx_target_version "))?;
    let number: u32 = line.trim().parse().ok().filter(|&n| n > 0)?;
    Some(format!("gfx{}{:x}{:x}", number / 10_000, number / 100 % 100, number % 100))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processors_are_named_as_compilers_name_them() {
        let named = |number: u32| processor(&format!("cpu_cores_count 0\ngfx_target_version {number}\nsimd_count 4\n"));
        let pairs = [(90010, "gfx90a"), (90402, "gfx942"), (100300, "gfx1030"), (110001, "gfx1101")];
        for (number, name) in pairs {
            assert_eq!(named(number).as_deref(), Some(name));
        }
        // A CPU.
        assert_eq!(named(0), None);
        assert_eq!(processor("simd_count 4\n"), None);
    }
}
