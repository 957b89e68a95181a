//! The HIP runtime, found when it is first needed: nothing links it.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::sync::OnceLock;

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};

use super::HipError;

/// An object of HIP: a module, a function, a stream.
pub type Handle = *mut c_void;

/// The functions of HIP that kernels need to be loaded and launched, by their names there.
#[derive(Debug)]
#[allow(non_snake_case)]
pub struct Hip {
    /// Major version of its shared library.
    pub(super) major: u32,
    /// The shared library, never closed.
    pub(super) library: Library,
    hipGetDevice: unsafe extern "C" fn(*mut c_int) -> c_int,
    hipSetDevice: unsafe extern "C" fn(c_int) -> c_int,
    hipGetDeviceProperties: unsafe extern "C" fn(*mut c_void, c_int) -> c_int,
    properties: PropertiesLayout,
    hipRuntimeGetVersion: unsafe extern "C" fn(*mut c_int) -> c_int,
    hipModuleLoadData: unsafe extern "C" fn(*mut Handle, *const c_void) -> c_int,
    hipModuleGetFunction: unsafe extern "C" fn(*mut Handle, Handle, *const c_char) -> c_int,
    hipModuleLaunchKernel: Launch,
    hipGetLastError: unsafe extern "C" fn() -> c_int,
    hipGetErrorName: unsafe extern "C" fn(c_int) -> *const c_char,
    hipGetErrorString: unsafe extern "C" fn(c_int) -> *const c_char,
}

type Launch = unsafe extern "C" fn(
    Handle,
    c_uint,
    c_uint,
    c_uint,
    c_uint,
    c_uint,
    c_uint,
    c_uint,
    Handle,
    *mut *mut c_void,
    *mut *mut c_void,
) -> c_int;

/// What is asked of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Properties {
    /// Such as gfx90a:sramecc+:xnack-.
    pub arch: String,
    /// Lanes of a wave.
    pub wave_size: u32,
    /// Compute units.
    pub compute_units: u32,
    /// Bytes of LDS that a block may use.
    pub shared_bytes: u32,
}

/// Byte offsets within hipDeviceProp_t, which HIP 6 changed together with the name of the function that fills it.
#[derive(Clone, Copy, Debug)]
struct PropertiesLayout {
    arch: usize,
    wave_size: usize,
    compute_units: usize,
    shared_bytes: usize,
}

/// HIP 6 and 7: hipDeviceProp_tR0600, 1472 bytes.
const R0600: PropertiesLayout = PropertiesLayout { arch: 1160, wave_size: 308, compute_units: 388, shared_bytes: 296 };
/// HIP 5: 792 bytes.
const R0000: PropertiesLayout = PropertiesLayout { arch: 396, wave_size: 276, compute_units: 336, shared_bytes: 264 };

impl Hip {
    /// The HIP runtime of this process: the one that is loaded already, such as ONNX Runtime's, else the newest known.
    ///
    /// # Errors
    /// If there is none, or it lacks a function.
    pub fn get() -> Result<&'static Self, HipError> {
        static HIP: OnceLock<Result<Hip, String>> = OnceLock::new();
        HIP.get_or_init(Self::open).as_ref().map_err(|problem| HipError::NoRuntime(problem.clone()))
    }

    fn open() -> Result<Self, String> {
        const MAJORS: [u32; 3] = [7, 6, 5];
        let file = |major: u32| format!("libamdhip64.so.{major}");
        let loaded = MAJORS.iter().find_map(|&major| Some((major, already_loaded(&file(major))?)));
        let mut problems = Vec::new();
        let mut open = |major: u32| {
            // SAFETY: AMD's runtime, by its name; loading it runs its initialisers and nothing of ours depends on them.
            let library = unsafe { Library::open(Some(file(major)), RTLD_NOW | RTLD_GLOBAL) };
            library.map_err(|e| problems.push(e.to_string())).ok().map(|library| (major, library))
        };
        match loaded.or_else(|| MAJORS.iter().find_map(|&major| open(major))) {
            Some((major, library)) => Self::with(major, library),
            None => Err(problems.join("; ")),
        }
    }

    fn with(major: u32, library: Library) -> Result<Self, String> {
        /// The function of a name, as the type that the field asks for.
        macro_rules! function {
            ($name:ident) => {
                // SAFETY: the signature is that of hip_runtime_api.h, the same in HIP 5, 6 and 7.
                unsafe { *library.get(concat!(stringify!($name), "\0").as_bytes()).map_err(|e| e.to_string())? }
            };
        }
        let (properties, fill) = if major >= 6 {
            (R0600, function!(hipGetDevicePropertiesR0600))
        } else {
            (R0000, function!(hipGetDeviceProperties))
        };
        Ok(Self {
            major,
            properties,
            hipGetDevice: function!(hipGetDevice),
            hipSetDevice: function!(hipSetDevice),
            hipGetDeviceProperties: fill,
            hipRuntimeGetVersion: function!(hipRuntimeGetVersion),
            hipModuleLoadData: function!(hipModuleLoadData),
            hipModuleGetFunction: function!(hipModuleGetFunction),
            hipModuleLaunchKernel: function!(hipModuleLaunchKernel),
            hipGetLastError: function!(hipGetLastError),
            hipGetErrorName: function!(hipGetErrorName),
            hipGetErrorString: function!(hipGetErrorString),
            library,
        })
    }

    /// The shared library, for functions that are not here.
    pub(crate) fn library(&self) -> &Library {
        &self.library
    }

    /// Makes `ordinal` the calling thread's device until the guard is dropped.
    pub(crate) fn on_device(&self, ordinal: i32) -> Result<OnDevice<'_>, HipError> {
        let mut previous = 0;
        // SAFETY: the out pointer is valid.
        self.check(unsafe { (self.hipGetDevice)(&mut previous) }, || "hipGetDevice".into())?;
        if previous != ordinal {
            // SAFETY: takes a number.
            self.check(unsafe { (self.hipSetDevice)(ordinal) }, || format!("hipSetDevice({ordinal})"))?;
        }
        Ok(OnDevice { hip: self, previous: (previous != ordinal).then_some(previous) })
    }

    /// What device `ordinal` is.
    pub(super) fn properties(&self, ordinal: i32) -> Result<Properties, HipError> {
        // Larger than the structure of any version, and aligned as it is.
        let mut buffer = [0u64; 1024];
        // SAFETY: the buffer is larger than what HIP writes.
        let code = unsafe { (self.hipGetDeviceProperties)(buffer.as_mut_ptr().cast(), ordinal) };
        self.check(code, || format!("hipGetDeviceProperties({ordinal})"))?;
        let bytes: Vec<u8> = buffer.iter().flat_map(|word| word.to_ne_bytes()).collect();
        read_properties(&bytes, self.properties).map_err(|problem| HipError::Device { ordinal, problem })
    }

    /// HIP's own version number.
    pub(super) fn version(&self) -> Result<i32, HipError> {
        let mut version = 0;
        // SAFETY: the out pointer is valid.
        self.check(unsafe { (self.hipRuntimeGetVersion)(&mut version) }, || "hipRuntimeGetVersion".into())?;
        Ok(version)
    }

    /// Loads a code object on the current device.
    pub(super) fn load(&self, code: &[u8]) -> Result<Handle, HipError> {
        let mut module = std::ptr::null_mut();
        // SAFETY: `code` is a whole code object: our own build's, hipRTC's, or one from the cache with its checksum right.
        let status = unsafe { (self.hipModuleLoadData)(&mut module, code.as_ptr().cast()) };
        self.check(status, || format!("hipModuleLoadData of {} bytes", code.len()))?;
        Ok(module)
    }

    /// A kernel of a module.
    pub(super) fn function(&self, module: Handle, name: &CStr) -> Result<Handle, HipError> {
        let mut function = std::ptr::null_mut();
        // SAFETY: the module was loaded by this runtime and is never unloaded.
        let status = unsafe { (self.hipModuleGetFunction)(&mut function, module, name.as_ptr()) };
        self.check(status, || format!("hipModuleGetFunction of {}", name.to_string_lossy()))?;
        Ok(function)
    }

    /// Queues a kernel on `stream`.
    ///
    /// # Safety
    /// `function` takes one argument, of the bytes of `argument`, and what it reads and writes through pointers in it
    /// stays valid until the stream has run it.
    pub(super) unsafe fn launch(
        &self,
        (name, function): (&str, Handle),
        (grid, block): ([u32; 3], [u32; 3]),
        shared_bytes: u32,
        stream: Handle,
        argument: &[u8],
    ) -> Result<(), HipError> {
        const POINTER: Handle = 1 as Handle;
        const SIZE: Handle = 2 as Handle;
        const END: Handle = 3 as Handle;
        let mut bytes = argument.len();
        let mut extra =
            [POINTER, argument.as_ptr().cast_mut().cast(), SIZE, (&raw mut bytes).cast(), END, std::ptr::null_mut()];
        // SAFETY: by this function's contract; HIP copies the argument before it returns.
        let status = unsafe {
            (self.hipModuleLaunchKernel)(
                function,
                grid[0],
                grid[1],
                grid[2],
                block[0],
                block[1],
                block[2],
                shared_bytes,
                stream,
                std::ptr::null_mut(),
                extra.as_mut_ptr(),
            )
        };
        self.check(status, || format!("hipModuleLaunchKernel of {name} (grid {grid:?}, block {block:?})"))
    }

    /// An error of HIP as ours. HIP's memory of it is cleared, so that whoever looks there next is not misled.
    pub(crate) fn check(&self, code: c_int, call: impl FnOnce() -> String) -> Result<(), HipError> {
        if code == 0 {
            return Ok(());
        }
        // SAFETY: both take any number and return a constant, or null; the last one takes nothing.
        let (name, meaning) = unsafe {
            (self.hipGetLastError)();
            (text((self.hipGetErrorName)(code)), text((self.hipGetErrorString)(code)))
        };
        Err(HipError::Call { call: call(), code, name, meaning })
    }
}

/// A device being current.
pub(crate) struct OnDevice<'h> {
    hip: &'h Hip,
    previous: Option<i32>,
}

impl Drop for OnDevice<'_> {
    fn drop(&mut self) {
        if let Some(previous) = self.previous {
            // SAFETY: takes a number, of a device that was current before. There is nobody to tell of an error.
            unsafe { (self.hip.hipSetDevice)(previous) };
        }
    }
}

/// The library `file` if this process has loaded it.
pub(super) fn already_loaded(file: &str) -> Option<Library> {
    // SAFETY: nothing is loaded, so no code runs.
    unsafe { Library::open(Some(file), RTLD_NOW | libc::RTLD_NOLOAD) }.ok()
}

fn read_properties(bytes: &[u8], layout: PropertiesLayout) -> Result<Properties, String> {
    let int = |at: usize| u32::from_ne_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
    let arch = CStr::from_bytes_until_nul(&bytes[layout.arch..layout.arch + 256]).ok().and_then(|s| s.to_str().ok());
    let properties = Properties {
        arch: arch.unwrap_or_default().to_owned(),
        wave_size: int(layout.wave_size),
        compute_units: int(layout.compute_units),
        // A size_t whose high half is zero.
        shared_bytes: int(layout.shared_bytes),
    };
    let name = |c: char| c.is_ascii_alphanumeric() || ":+-_".contains(c);
    if !properties.arch.starts_with("gfx") || !properties.arch.chars().all(name) || properties.compute_units == 0 {
        return Err(format!("hipGetDeviceProperties says what no AMD GPU would: {properties:?}"));
    }
    Ok(properties)
}

fn text(text: *const c_char) -> String {
    if text.is_null() {
        return "unknown".into();
    }
    // SAFETY: HIP returns constants.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn properties_are_read_where_they_lie_and_doubted_elsewhere() {
        for (layout, other) in [(R0600, R0000), (R0000, R0600)] {
            let mut bytes = vec![0; 2048];
            bytes[layout.arch..layout.arch + 14].copy_from_slice(b"gfx90a:xnack-\0");
            bytes[layout.wave_size] = 64;
            bytes[layout.compute_units] = 104;
            bytes[layout.shared_bytes + 2] = 1;
            let expected =
                Properties { arch: "gfx90a:xnack-".into(), wave_size: 64, compute_units: 104, shared_bytes: 65536 };
            assert_eq!(read_properties(&bytes, layout), Ok(expected));
            assert!(read_properties(&bytes, other).is_err());
        }
    }
}
