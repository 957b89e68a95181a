//! A device with its kernels loaded, once per process.

use std::collections::{BTreeMap, HashMap};
use std::ffi::CString;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use super::code_cache::Entry;
use super::cuda::Cuda;
use super::error::GpuError;
use super::hip::Hip;
use super::plan::{self, Plan};
use super::runtime::{Current, Handle, KernelLaunch, Properties, Runtime, Vendor};

/// A device that kernels can be launched on.
#[derive(Debug)]
pub struct Device {
    runtime: &'static dyn Runtime,
    ordinal: i32,
    properties: Properties,
    /// See [`plan::Device::unpacked_bytes`].
    unpacked_bytes: AtomicUsize,
    module: Handle,
    functions: Mutex<HashMap<String, Handle>>,
}

// SAFETY: handles of the drivers may be used from any thread, and the map is locked.
unsafe impl Send for Device {}
// SAFETY: as above.
unsafe impl Sync for Device {}

fn runtime(vendor: Vendor) -> Result<&'static dyn Runtime, GpuError> {
    Ok(match vendor {
        Vendor::Amd => Hip::get()?,
        Vendor::Nvidia => Cuda::get()?,
    })
}

impl Device {
    /// Device `ordinal` of `vendor` with the kernels loaded. The first call may compile them, which takes minutes.
    ///
    /// # Errors
    /// If there is no driver, no such device, or no usable kernels for it; a later call tries again.
    pub fn get(vendor: Vendor, ordinal: i32) -> Result<&'static Self, GpuError> {
        static DEVICES: Mutex<BTreeMap<(Vendor, i32), &'static Device>> = Mutex::new(BTreeMap::new());
        let mut devices = DEVICES.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(&device) = devices.get(&(vendor, ordinal)) {
            return Ok(device);
        }
        let device = Self::new(runtime(vendor)?, ordinal, load)?;
        // Never freed: sessions refer to it.
        let device = Box::leak(Box::new(device));
        devices.insert((vendor, ordinal), device);
        Ok(device)
    }

    /// Device `ordinal` of `vendor` with the kernels in `code`, for callers that have compiled them.
    ///
    /// # Errors
    /// If there is no driver, no such device, or `code` does not fit it.
    pub fn with_code(vendor: Vendor, ordinal: i32, code: &[u8]) -> Result<Self, GpuError> {
        let given = |runtime: &dyn Runtime, ordinal, arch: &str| match runtime.code().is_code(code) {
            true => runtime.load(code),
            false => Err(GpuError::Device { ordinal, problem: format!("{} bytes are no code for {arch}", code.len()) }),
        };
        Self::new(runtime(vendor)?, ordinal, given)
    }

    fn new(
        runtime: &'static dyn Runtime,
        ordinal: i32,
        load: impl FnOnce(&dyn Runtime, i32, &str) -> Result<Handle, GpuError>,
    ) -> Result<Self, GpuError> {
        let _current = Current::new(runtime, ordinal)?;
        let properties = runtime.properties(ordinal)?;
        let module = load(runtime, ordinal, &properties.arch)?;
        let unpacked_bytes = AtomicUsize::new(properties.for_plan.unpacked_bytes);
        Ok(Self { runtime, ordinal, properties, unpacked_bytes, module, functions: Mutex::default() })
    }

    /// Properties of the device.
    pub fn properties(&self) -> &Properties {
        &self.properties
    }

    /// The properties that a plan needs.
    pub fn for_plan(&self) -> plan::Device {
        plan::Device { unpacked_bytes: self.unpacked_bytes.load(Ordering::Relaxed), ..self.properties.for_plan }
    }

    /// Says that there was no memory for a workspace in which unpacked rows take `bytes` bytes: plans of this process
    /// ask for half as many at most from then on, and for none if that is too little to be of use.
    pub fn unpack_less_than(&self, bytes: usize) {
        const LEAST: usize = 1 << 20;
        let half = if bytes / 2 < LEAST { 0 } else { bytes / 2 };
        self.unpacked_bytes.fetch_min(half, Ordering::Relaxed);
    }

    /// Refuses `stream`, a hipStream_t, a CUstream or null, while it is captured: the graph would keep the lengths of
    /// one call.
    ///
    /// # Safety
    /// `stream` belongs to this device.
    ///
    /// # Errors
    /// If it is captured, or the driver cannot tell.
    pub unsafe fn check_stream(&self, stream: Handle) -> Result<(), GpuError> {
        let _current = Current::new(self.runtime, self.ordinal)?;
        // SAFETY: by this function's contract.
        match unsafe { self.runtime.is_capturing(stream)? } {
            true => Err(GpuError::Capturing),
            false => Ok(()),
        }
    }

    /// Queues all launches of `plan` on `stream`, and waits for none of them. While `stream` is captured, the graph
    /// keeps the lengths that `plan` was made for; see [`Device::check_stream`].
    ///
    /// # Safety
    /// The pointers in the plan's calls are device pointers to tensors of the sizes that the plan was made for, or
    /// null where allowed, and stay valid until the stream has run the queued work. `stream` belongs to this device.
    ///
    /// # Errors
    /// If a kernel cannot be found or launched; earlier ones stay queued.
    pub unsafe fn queue(&self, plan: &Plan, stream: Handle) -> Result<(), GpuError> {
        if plan.launches.is_empty() {
            return Ok(());
        }
        let _current = Current::new(self.runtime, self.ordinal)?;
        for launch in &plan.launches {
            let launch = KernelLaunch {
                name: &launch.kernel,
                function: self.function(&launch.kernel)?,
                grid: launch.grid,
                block: launch.block,
                shared_bytes: launch.shared_bytes,
                argument: &launch.call,
            };
            // SAFETY: the kernel belongs to this runtime and its device is current; the rest follows from this
            // function's contract.
            unsafe { self.runtime.launch(&launch, stream)? };
        }
        Ok(())
    }

    fn function(&self, name: &str) -> Result<Handle, GpuError> {
        let mut functions = self.functions.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(&function) = functions.get(name) {
            return Ok(function);
        }
        let text = CString::new(name).expect("names of kernels have no zero byte");
        let function = self.runtime.function(self.module, &text, self.properties.for_plan.shared_bytes)?;
        functions.insert(name.to_owned(), function);
        Ok(function)
    }
}

/// Loads the kernels for `arch` on the current device: embedded, compiled earlier, or compiled now.
fn load(runtime: &dyn Runtime, ordinal: i32, arch: &str) -> Result<Handle, GpuError> {
    let code = runtime.code();
    let mut problem = String::new();
    if let Some(carried) = code.carried(arch) {
        match runtime.load(carried) {
            Ok(module) => return Ok(module),
            // The processor fits, so the driver does not support the format or a feature; the machine's own compiler
            // may do better.
            Err(e) => problem = format!("{e}, and "),
        }
    }
    let cache = Entry::new(code.folder(), arch, &code.compiler()?);
    if let Some((cache, code)) = cache.as_ref().and_then(|c| Some((c, c.read(|bytes| code.is_code(bytes))?))) {
        match runtime.load(&code) {
            Ok(module) => return Ok(module),
            Err(_) => cache.remove(),
        }
    }
    let compiled = code.compile(arch).map_err(|e| {
        let (carried, advice) = code.advice(arch);
        GpuError::NoKernels { ordinal, arch: arch.to_owned(), carried, problem: problem + &e, advice }
    })?;
    let module = runtime.load(&compiled)?;
    if let Some(cache) = cache {
        // Failing to write the cache only costs time.
        cache.write(&compiled).ok();
    }
    Ok(module)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_that_is_not_there_is_an_error_with_or_without_a_driver() {
        let message = |vendor| Device::get(vendor, 1000).unwrap_err().to_string();
        let hip = message(Vendor::Amd);
        assert!(hip.starts_with("no HIP runtime: ") || hip.contains(" failed: hipError"), "{hip}");
        let cuda = message(Vendor::Nvidia);
        assert!(cuda.starts_with("no CUDA driver: ") || cuda.contains(" failed: CUDA_ERROR"), "{cuda}");
    }
}
