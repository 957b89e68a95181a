//! What tests and timings need of a CUDA GPU beside the library's own way to launch kernels: memory, streams, graphs,
//! events. In ONNX Runtime these come from an execution provider.

#![allow(dead_code)]

mod driver;
pub mod graph;
pub mod memory;

use std::ffi::{CString, c_int, c_void};
use std::path::Path;

use spark_ort::gpu::plan::{self, Plan};
use spark_ort::gpu::{Device, Vendor};

use driver::{Driver, Handle, POINTER_BYTES};
use graph::Stream;
use memory::Buffer;

/// Names the fatbin that `tools/cuda.sh build` makes of `ops/spark.hip`.
pub const CODE_VARIABLE: &str = "SPARK_CUDA_CODE";

/// Values of CUdevice_attribute.
const L2_CACHE_SIZE: c_int = 38;
const COMPUTE_CAPABILITY_MAJOR: c_int = 75;
const COMPUTE_CAPABILITY_MINOR: c_int = 76;

/// Device 0 with the kernels loaded.
pub struct Cuda {
    driver: Driver,
    context: Handle,
    properties: Properties,
    kernels: Device,
}

// SAFETY: handles of the driver may be used from any thread, once the context is made current there.
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
    pub for_plan: plan::Device,
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
        let code = std::fs::read(code).map_err(|e| format!("{}: {e}", code.display()))?;
        let kernels = Device::with_code(Vendor::Nvidia, 0, &code).map_err(|e| e.to_string())?;
        let properties = properties(&driver, device, kernels.for_plan())?;
        Ok(Self { driver, context, properties, kernels })
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
        // SAFETY: by this function's contract.
        unsafe { self.kernels.queue(plan, stream.handle()) }.map_err(|e| e.to_string())
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

fn properties(driver: &Driver, device: c_int, for_plan: plan::Device) -> Result<Properties, String> {
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
        for_plan,
    })
}

/// Loads a fatbin of nvcc's on the current device.
fn load(driver: &Driver, file: &Path) -> Result<Handle, String> {
    let code = std::fs::read(file).map_err(|e| format!("{}: {e}", file.display()))?;
    let mut module = std::ptr::null_mut();
    // SAFETY: the file is what tools/cuda.sh made; the driver copies it.
    let status = unsafe { (driver.cuModuleLoadData)(&mut module, code.as_ptr().cast()) };
    driver.check(status, || format!("cuModuleLoadData of {}", file.display()))?;
    Ok(module)
}

const _: () = assert!(POINTER_BYTES == 8, "device addresses and pointers are the same");
