//! The HIP runtime, opened when first needed rather than linked.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::sync::OnceLock;

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};

use super::arch::{has_matrix_cores, processor};
use crate::gpu::error::GpuError;
use crate::gpu::plan::{self, MatrixCores};
use crate::gpu::runtime::{
    CodeFormat, Current, Handle, KernelLaunch, Previous, Properties, Runtime, functions, reason, text,
};

functions! {
    /// The HIP functions for loading and launching kernels.
    Functions {
        hipGetDevice: (*mut c_int);
        hipSetDevice: (c_int);
        hipRuntimeGetVersion: (*mut c_int);
        hipModuleLoadData: (*mut Handle, *const c_void);
        hipModuleGetFunction: (*mut Handle, Handle, *const c_char);
        hipModuleLaunchKernel: (
            Handle, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, Handle, *mut *mut c_void, *mut *mut c_void
        );
        hipStreamIsCapturing: (Handle, *mut c_int);
        hipGetLastError: ();
    }
}

type ErrorText = unsafe extern "C" fn(c_int) -> *const c_char;

/// The HIP runtime.
#[derive(Debug)]
#[allow(non_snake_case)]
pub struct Hip {
    /// Major version of its shared library.
    pub(super) major: u32,
    /// The shared library, never closed.
    library: Library,
    functions: Functions,
    fill_properties: unsafe extern "C" fn(*mut c_void, c_int) -> c_int,
    properties: PropertiesLayout,
    hipGetErrorName: ErrorText,
    hipGetErrorString: ErrorText,
}

/// Byte offsets in hipDeviceProp_t, which changed in HIP 6, as did the name of the function that fills it.
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
    /// The HIP runtime of this process: the one already loaded, such as ONNX Runtime's, else the newest known.
    ///
    /// # Errors
    /// If there is none, or a function is missing.
    pub fn get() -> Result<&'static Self, GpuError> {
        static HIP: OnceLock<Result<Hip, String>> = OnceLock::new();
        HIP.get_or_init(Self::open)
            .as_ref()
            .map_err(|problem| GpuError::NoRuntime { runtime: "HIP runtime", problem: problem.clone() })
    }

    fn open() -> Result<Self, String> {
        const MAJORS: [u32; 3] = [7, 6, 5];
        let file = |major: u32| format!("libamdhip64.so.{major}");
        let loaded = MAJORS.iter().find_map(|&major| Some((major, already_loaded(&file(major))?)));
        let mut problems = Vec::new();
        let mut open = |major: u32| {
            // SAFETY: AMD's runtime, by its name; loading it runs its initialisers, on which none of our code depends.
            let library = unsafe { Library::open(Some(file(major)), RTLD_NOW | RTLD_GLOBAL) };
            library.map_err(|e| problems.push(reason(&e))).ok().map(|library| (major, library))
        };
        match loaded.or_else(|| MAJORS.iter().find_map(|&major| open(major))) {
            Some((major, library)) => Self::with(major, library),
            None => Err(problems.join("; ")),
        }
    }

    fn with(major: u32, library: Library) -> Result<Self, String> {
        /// The function with this name, with the type of the field.
        macro_rules! function {
            ($name:ident) => {
                // SAFETY: the signature is that of hip_runtime_api.h, the same in HIP 5, 6 and 7.
                unsafe { *library.get(concat!(stringify!($name), "\0").as_bytes()).map_err(|e| e.to_string())? }
            };
        }
        let (properties, fill_properties) = if major >= 6 {
            (R0600, function!(hipGetDevicePropertiesR0600))
        } else {
            (R0000, function!(hipGetDeviceProperties))
        };
        Ok(Self {
            major,
            functions: Functions::of(&library)?,
            properties,
            fill_properties,
            hipGetErrorName: function!(hipGetErrorName),
            hipGetErrorString: function!(hipGetErrorString),
            library,
        })
    }

    /// The shared library, for functions that are not listed here.
    pub(crate) fn library(&self) -> &Library {
        &self.library
    }

    /// Makes device `ordinal` current until the result is dropped.
    ///
    /// # Errors
    /// If there is no such device.
    pub(crate) fn current(&self, ordinal: i32) -> Result<Current<'_>, GpuError> {
        Current::new(self, ordinal)
    }

    /// HIP's version number.
    pub(super) fn version(&self) -> Result<i32, GpuError> {
        let mut version = 0;
        // SAFETY: the out pointer is valid.
        let code = unsafe { (self.functions.hipRuntimeGetVersion)(&mut version) };
        self.check(code, || "hipRuntimeGetVersion".into())?;
        Ok(version)
    }

    /// Converts an error of HIP to ours. HIP's last error is cleared, so that later checks of it are not misled.
    pub(crate) fn check(&self, code: c_int, call: impl FnOnce() -> String) -> Result<(), GpuError> {
        if code == 0 {
            return Ok(());
        }
        // SAFETY: both take any number and return a constant or null; the last one has no arguments.
        let (name, meaning) = unsafe {
            (self.functions.hipGetLastError)();
            (text((self.hipGetErrorName)(code)), text((self.hipGetErrorString)(code)))
        };
        Err(GpuError::Call { call: call(), code, name, meaning })
    }
}

impl Runtime for Hip {
    fn enter(&self, ordinal: i32) -> Result<Previous, GpuError> {
        let mut previous = 0;
        // SAFETY: the out pointer is valid.
        self.check(unsafe { (self.functions.hipGetDevice)(&mut previous) }, || "hipGetDevice".into())?;
        if previous == ordinal {
            return Ok(Previous(None));
        }
        // SAFETY: the argument is a number.
        self.check(unsafe { (self.functions.hipSetDevice)(ordinal) }, || format!("hipSetDevice({ordinal})"))?;
        Ok(Previous(Some(previous)))
    }

    fn leave(&self, previous: Previous) {
        if let Previous(Some(previous)) = previous {
            // SAFETY: the argument is the number of a device that was current before. There is no one to report an
            // error to.
            unsafe { (self.functions.hipSetDevice)(previous) };
        }
    }

    fn properties(&self, ordinal: i32) -> Result<Properties, GpuError> {
        // Larger than the structure of any version, with the same alignment.
        let mut buffer = [0u64; 1024];
        // SAFETY: the buffer is larger than the structure that HIP writes.
        let code = unsafe { (self.fill_properties)(buffer.as_mut_ptr().cast(), ordinal) };
        self.check(code, || format!("hipGetDeviceProperties({ordinal})"))?;
        let bytes: Vec<u8> = buffer.iter().flat_map(|word| word.to_ne_bytes()).collect();
        read_properties(&bytes, self.properties).map_err(|problem| GpuError::Device { ordinal, problem })
    }

    fn load(&self, code: &[u8]) -> Result<Handle, GpuError> {
        let mut module = std::ptr::null_mut();
        // SAFETY: `code` is a complete code object: from our own build, from hipRTC, or from the cache with a correct
        // checksum.
        let status = unsafe { (self.functions.hipModuleLoadData)(&mut module, code.as_ptr().cast()) };
        self.check(status, || format!("hipModuleLoadData of {} bytes", code.len()))?;
        Ok(module)
    }

    fn function(&self, module: Handle, name: &CStr, _shared_bytes: u32) -> Result<Handle, GpuError> {
        let mut function = std::ptr::null_mut();
        // SAFETY: the module was loaded by this runtime and is never unloaded.
        let status = unsafe { (self.functions.hipModuleGetFunction)(&mut function, module, name.as_ptr()) };
        self.check(status, || format!("hipModuleGetFunction of {}", name.to_string_lossy()))?;
        Ok(function)
    }

    /// # Safety
    /// As in the trait.
    unsafe fn launch(&self, launch: &KernelLaunch<'_>, stream: Handle) -> Result<(), GpuError> {
        // HIP_LAUNCH_PARAM_*; the last one is 0 in CUDA.
        const POINTER: Handle = 1 as Handle;
        const SIZE: Handle = 2 as Handle;
        const END: Handle = 3 as Handle;
        let &KernelLaunch { name, function, grid, block, shared_bytes, argument } = launch;
        let mut bytes = size_of_val(argument);
        let argument = (&raw const *argument).cast_mut().cast();
        let mut extra = [POINTER, argument, SIZE, (&raw mut bytes).cast(), END, std::ptr::null_mut()];
        // SAFETY: every kernel takes one Call, without padding that kernels read, which HIP copies before it returns;
        // the rest follows from this function's contract.
        let status = unsafe {
            (self.functions.hipModuleLaunchKernel)(
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

    /// # Safety
    /// As in the trait.
    unsafe fn is_capturing(&self, stream: Handle) -> Result<bool, GpuError> {
        let mut status = 0;
        // SAFETY: by this function's contract; the out pointer is valid.
        let code = unsafe { (self.functions.hipStreamIsCapturing)(stream, &mut status) };
        self.check(code, || "hipStreamIsCapturing".into())?;
        // hipStreamCaptureStatusNone
        Ok(status != 0)
    }

    fn code(&self) -> &dyn CodeFormat {
        self
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
    let arch = arch.unwrap_or_default().to_owned();
    let for_plan = plan::Device {
        wave_size: int(layout.wave_size),
        compute_units: int(layout.compute_units),
        // A size_t whose high half is zero.
        shared_bytes: int(layout.shared_bytes),
        matrix: if has_matrix_cores(processor(&arch)) { MatrixCores::Mfma } else { MatrixCores::None },
        unpacked_bytes: plan::UNPACKED_BYTES,
    };
    let name = |c: char| c.is_ascii_alphanumeric() || ":+-_".contains(c);
    if !arch.starts_with("gfx") || !arch.chars().all(name) || for_plan.compute_units == 0 {
        return Err(format!("hipGetDeviceProperties says what no AMD GPU would: {arch:?}, {for_plan:?}"));
    }
    Ok(Properties { arch, for_plan })
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
            let for_plan = plan::Device {
                wave_size: 64,
                compute_units: 104,
                shared_bytes: 65536,
                matrix: MatrixCores::Mfma,
                unpacked_bytes: plan::UNPACKED_BYTES,
            };
            let expected = Properties { arch: "gfx90a:xnack-".into(), for_plan };
            assert_eq!(read_properties(&bytes, layout), Ok(expected));
            assert!(read_properties(&bytes, other).is_err());
        }
    }
}
