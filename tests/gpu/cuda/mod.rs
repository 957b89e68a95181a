//! NVIDIA's driver, opened at run time: what it takes to run plans on a GPU, for tests and timings. The library has no
//! part of it: no execution provider of ONNX Runtime would call it.

#![allow(dead_code)]

mod driver;
pub mod graph;
pub mod memory;

use std::collections::HashMap;
use std::ffi::{CString, c_int, c_void};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use spark_ort::hip::params::Call;
use spark_ort::hip::plan::{Device, Plan};

use driver::{Driver, Handle, POINTER_BYTES};
use graph::Stream;
use memory::Buffer;

/// Names the fatbin that `tools/cuda.sh build` makes of `ops/spark.hip`.
pub const CODE_VARIABLE: &str = "SPARK_CUDA_CODE";

/// Values of CUdevice_attribute.
const WARP_SIZE: c_int = 10;
const MULTIPROCESSOR_COUNT: c_int = 16;
const L2_CACHE_SIZE: c_int = 38;
const COMPUTE_CAPABILITY_MAJOR: c_int = 75;
const COMPUTE_CAPABILITY_MINOR: c_int = 76;
const MAX_SHARED_MEMORY_PER_BLOCK_OPTIN: c_int = 97;
/// Of CUfunction_attribute.
const MAX_DYNAMIC_SHARED_SIZE_BYTES: c_int = 8;

/// Device 0 with the kernels loaded.
pub struct Cuda {
    driver: Driver,
    context: Handle,
    properties: Properties,
    module: Handle,
    functions: Mutex<HashMap<String, Handle>>,
}

// SAFETY: handles of the driver may be used from any thread, once the context is made current there, and the map is
// locked.
unsafe impl Send for Cuda {}
// SAFETY: as above.
unsafe impl Sync for Cuda {}

/// What a device is.
#[derive(Clone, Debug)]
pub struct Properties {
    pub name: String,
    /// Such as 9.0.
    pub capability: String,
    /// Newest CUDA that the driver knows, such as 13.0.
    pub cuda: String,
    pub l2_bytes: usize,
    /// What plans must know.
    pub for_plan: Device,
}

impl Cuda {
    /// Device 0 with the kernels of [`CODE_VARIABLE`].
    ///
    /// # Errors
    /// If there is no driver, no device, or no code for it.
    pub fn open() -> Result<Self, String> {
        let code = std::env::var_os(CODE_VARIABLE).ok_or_else(|| format!("{CODE_VARIABLE} names no file"))?;
        Self::with(Path::new(&code))
    }

    /// Device 0 with the kernels of the fatbin `code`.
    pub fn with(code: &Path) -> Result<Self, String> {
        let driver = Driver::open()?;
        let mut count = 0;
        // SAFETY: the out pointer is valid.
        driver.check(unsafe { (driver.cuDeviceGetCount)(&mut count) }, || "cuDeviceGetCount".into())?;
        if count < 1 {
            return Err("the CUDA driver knows of no device".into());
        }
        let (mut device, mut context) = (0, std::ptr::null_mut());
        // SAFETY: the out pointers are valid; the device is the driver's own. The context is kept for as long as the
        // process lives.
        unsafe {
            driver.check((driver.cuDeviceGet)(&mut device, 0), || "cuDeviceGet".into())?;
            let status = (driver.cuDevicePrimaryCtxRetain)(&mut context, device);
            driver.check(status, || "cuDevicePrimaryCtxRetain".into())?;
            driver.check((driver.cuCtxSetCurrent)(context), || "cuCtxSetCurrent".into())?;
        }
        let properties = properties(&driver, device)?;
        let module = load(&driver, code)?;
        Ok(Self { driver, context, properties, module, functions: Mutex::default() })
    }

    /// What device 0 is.
    pub fn properties(&self) -> &Properties {
        &self.properties
    }

    /// Another module of kernels, from a fatbin.
    pub fn load(&self, code: &Path) -> Result<Module, String> {
        self.enter()?;
        load(&self.driver, code).map(Module)
    }

    /// Makes the device the calling thread's.
    fn enter(&self) -> Result<(), String> {
        // SAFETY: the context is never released.
        self.driver.check(unsafe { (self.driver.cuCtxSetCurrent)(self.context) }, || "cuCtxSetCurrent".into())
    }

    /// Waits for all that is queued.
    pub fn synchronize(&self) -> Result<(), String> {
        self.enter()?;
        // SAFETY: takes nothing.
        self.driver.check(unsafe { (self.driver.cuCtxSynchronize)() }, || "cuCtxSynchronize".into())
    }

    /// Queues the launches of `plan` on `stream`, null for the default one.
    ///
    /// # Safety
    /// The pointers in the plan's calls are device pointers to tensors of the sizes that the plan was made for, or null
    /// where it may be, and stay valid until the stream has run what is queued.
    ///
    /// # Errors
    /// Of the first launch that fails.
    pub unsafe fn queue(&self, plan: &Plan, stream: &Stream) -> Result<(), String> {
        self.enter()?;
        for launch in &plan.launches {
            let function = self.function(&launch.kernel)?;
            let call: *const Call = &launch.call;
            let mut arguments = [call.cast_mut().cast::<c_void>()];
            let (grid, block) = (launch.grid, launch.block);
            // SAFETY: every kernel takes one Call, which the driver copies; the rest is this function's contract.
            let status = unsafe {
                (self.driver.cuLaunchKernel)(
                    function,
                    grid[0],
                    grid[1],
                    grid[2],
                    block[0],
                    block[1],
                    block[2],
                    launch.shared_bytes,
                    stream.handle(),
                    arguments.as_mut_ptr(),
                    std::ptr::null_mut(),
                )
            };
            self.driver.check(status, || format!("cuLaunchKernel of {} (grid {grid:?})", launch.kernel))?;
        }
        Ok(())
    }

    fn function(&self, name: &str) -> Result<Handle, String> {
        let mut functions = self.functions.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(&function) = functions.get(name) {
            return Ok(function);
        }
        let function = self.function_of(self.module, name)?;
        // Blocks take more than 48 KB only if that was said before.
        let most = self.properties.for_plan.shared_bytes as c_int;
        // SAFETY: the function is one of the module's; the attribute takes a number.
        let status = unsafe { (self.driver.cuFuncSetAttribute)(function, MAX_DYNAMIC_SHARED_SIZE_BYTES, most) };
        self.driver.check(status, || format!("cuFuncSetAttribute of {name}, {most} bytes of shared memory"))?;
        functions.insert(name.to_owned(), function);
        Ok(function)
    }

    fn function_of(&self, module: Handle, name: &str) -> Result<Handle, String> {
        let text = CString::new(name).expect("names of kernels have no zero byte");
        let mut function = std::ptr::null_mut();
        // SAFETY: the module was loaded by this driver and is never unloaded.
        let status = unsafe { (self.driver.cuModuleGetFunction)(&mut function, module, text.as_ptr()) };
        self.driver.check(status, || format!("cuModuleGetFunction of {name}"))?;
        Ok(function)
    }

    /// Queues `kernel` of `module`, which takes a pointer to memory, its bytes (64 bits) and a pointer to four more
    /// bytes for a result.
    pub fn queue_read(
        &self,
        (module, kernel): (&Module, &str),
        (blocks, threads): (u32, u32),
        (memory, bytes): (&Buffer, usize),
        result: &Buffer,
        stream: &Stream,
    ) -> Result<(), String> {
        assert!(bytes <= memory.len() && result.len() >= 4, "the kernel stays within its memory");
        self.enter()?;
        let function = self.function_of(module.0, kernel)?;
        let (mut from, mut bytes, mut to) = (memory.address(), bytes as u64, result.address());
        let mut arguments: [*mut c_void; 3] = [(&raw mut from).cast(), (&raw mut bytes).cast(), (&raw mut to).cast()];
        // SAFETY: the arguments are what the kernel takes, and the driver copies them; both buffers outlive what is
        // queued, since a buffer waits for the device before it goes.
        let status = unsafe {
            (self.driver.cuLaunchKernel)(
                function,
                blocks,
                1,
                1,
                threads,
                1,
                1,
                0,
                stream.handle(),
                arguments.as_mut_ptr(),
                std::ptr::null_mut(),
            )
        };
        self.driver.check(status, || format!("cuLaunchKernel of {kernel}"))
    }
}

/// A loaded module.
pub struct Module(Handle);

fn properties(driver: &Driver, device: c_int) -> Result<Properties, String> {
    let attribute = |which: c_int| {
        let mut value = 0;
        // SAFETY: the out pointer is valid and the device is the driver's own.
        let status = unsafe { (driver.cuDeviceGetAttribute)(&mut value, which, device) };
        driver.check(status, || format!("cuDeviceGetAttribute({which})"))?;
        u32::try_from(value).map_err(|_| format!("cuDeviceGetAttribute({which}) is {value}"))
    };
    let mut name = [0u8; 256];
    let mut version = 0;
    // SAFETY: the buffer has the size given, and the out pointer is valid.
    unsafe {
        let status = (driver.cuDeviceGetName)(name.as_mut_ptr().cast(), name.len() as c_int, device);
        driver.check(status, || "cuDeviceGetName".into())?;
        driver.check((driver.cuDriverGetVersion)(&mut version), || "cuDriverGetVersion".into())?;
    }
    let end = name.iter().position(|&b| b == 0).unwrap_or(name.len());
    Ok(Properties {
        name: String::from_utf8_lossy(&name[..end]).into_owned(),
        capability: format!("{}.{}", attribute(COMPUTE_CAPABILITY_MAJOR)?, attribute(COMPUTE_CAPABILITY_MINOR)?),
        cuda: format!("{}.{}", version / 1000, version % 1000 / 10),
        l2_bytes: attribute(L2_CACHE_SIZE)? as usize,
        for_plan: Device {
            wave_size: attribute(WARP_SIZE)?,
            compute_units: attribute(MULTIPROCESSOR_COUNT)?,
            shared_bytes: attribute(MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
            matrix: false,
        },
    })
}

/// Loads a fatbin on the current device.
fn load(driver: &Driver, file: &Path) -> Result<Handle, String> {
    /// Magic, version (16 bits), bytes of the header (16 bits), bytes after it (64 bits).
    const MAGIC: [u8; 4] = 0xba55_ed50_u32.to_le_bytes();
    let code = std::fs::read(file).map_err(|e| format!("{}: {e}", file.display()))?;
    let whole = code.len() >= 16 && code[..4] == MAGIC && {
        let header = u16::from_le_bytes([code[6], code[7]]);
        let rest = u64::from_le_bytes(code[8..16].try_into().expect("eight bytes"));
        u64::from(header).checked_add(rest) == Some(code.len() as u64)
    };
    if !whole {
        return Err(format!("{} is no whole fatbin", file.display()));
    }
    let mut module = std::ptr::null_mut();
    // SAFETY: the file begins as a fatbin does and has the length that its header says; the driver copies it.
    let status = unsafe { (driver.cuModuleLoadData)(&mut module, code.as_ptr().cast()) };
    driver.check(status, || format!("cuModuleLoadData of {}", file.display()))?;
    Ok(module)
}

const _: () = assert!(POINTER_BYTES == 8, "device addresses and pointers are the same");
