//! A device with its kernels loaded, once for the process.

use std::collections::{BTreeMap, HashMap};
use std::ffi::CString;
use std::sync::{Mutex, PoisonError};

use super::cache::Entry;
use super::code::{carried, carried_names, has_matrix_cores, processor};
use super::library::{Handle, Hip, Properties};
use super::plan::{self, Plan};
use super::{HipError, compile};

/// A device that kernels can be launched on.
#[derive(Debug)]
pub struct Device {
    hip: &'static Hip,
    ordinal: i32,
    properties: Properties,
    module: Handle,
    functions: Mutex<HashMap<String, Handle>>,
}

// SAFETY: handles of HIP may be used from any thread, and the map is locked.
unsafe impl Send for Device {}
// SAFETY: as above.
unsafe impl Sync for Device {}

impl Device {
    /// Device `ordinal` with the kernels loaded. The first call may compile them, which takes up to a minute.
    ///
    /// # Errors
    /// If there is no HIP runtime, no such device, or no way to have kernels for it; a later call tries again.
    pub fn get(ordinal: i32) -> Result<&'static Self, HipError> {
        static DEVICES: Mutex<BTreeMap<i32, &'static Device>> = Mutex::new(BTreeMap::new());
        let mut devices = DEVICES.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(&device) = devices.get(&ordinal) {
            return Ok(device);
        }
        let hip = Hip::get()?;
        let _current = hip.on_device(ordinal)?;
        let properties = hip.properties(ordinal)?;
        let module = load(hip, ordinal, &properties.arch)?;
        // Kept for as long as the process lives: sessions refer to it.
        let device = Box::leak(Box::new(Self { hip, ordinal, properties, module, functions: Mutex::default() }));
        devices.insert(ordinal, device);
        Ok(device)
    }

    /// What a plan must know of the device.
    pub fn for_plan(&self) -> plan::Device {
        let &Properties { ref arch, wave_size, compute_units, shared_bytes } = &self.properties;
        plan::Device { wave_size, compute_units, shared_bytes, matrix: has_matrix_cores(processor(arch)) }
    }

    /// Queues all launches of `plan` on `stream`, a hipStream_t or null, and waits for none of them.
    ///
    /// # Safety
    /// The pointers in the plan's calls are device pointers to tensors of the sizes that the plan was made for, or null
    /// where it may be, and stay valid until the stream has run what is queued.
    ///
    /// # Errors
    /// If a kernel cannot be found or launched; those before it stay queued.
    pub unsafe fn run(&self, plan: &Plan, stream: Handle) -> Result<(), HipError> {
        if plan.launches.is_empty() {
            return Ok(());
        }
        let _current = self.hip.on_device(self.ordinal)?;
        for launch in &plan.launches {
            let function = self.function(&launch.kernel)?;
            let call = &raw const launch.call;
            // SAFETY: a Call has no padding that kernels look at and lives until the end of the loop.
            let argument = unsafe { std::slice::from_raw_parts(call.cast::<u8>(), size_of_val(&launch.call)) };
            let kernel = (launch.kernel.as_str(), function);
            // SAFETY: every kernel takes one Call; the rest is this function's contract.
            unsafe { self.hip.launch(kernel, (launch.grid, launch.block), launch.shared_bytes, stream, argument)? };
        }
        Ok(())
    }

    fn function(&self, name: &str) -> Result<Handle, HipError> {
        let mut functions = self.functions.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(&function) = functions.get(name) {
            return Ok(function);
        }
        let text = CString::new(name).expect("names of kernels have no zero byte");
        let function = self.hip.function(self.module, &text)?;
        functions.insert(name.to_owned(), function);
        Ok(function)
    }
}

/// Loads the kernels for `arch` on the current device: carried, compiled earlier, or compiled by hipRTC.
fn load(hip: &Hip, ordinal: i32, arch: &str) -> Result<Handle, HipError> {
    let processor = processor(arch);
    let mut problem = String::new();
    if let Some(code) = carried(processor) {
        match hip.load(code) {
            Ok(module) => return Ok(module),
            // The processor is right, so this is the runtime's format or features; a compiler of its own may do better.
            Err(e) => problem = format!("{e}, and "),
        }
    }
    let cache = Entry::new(arch, hip.version()?);
    if let Some((cache, code)) = cache.as_ref().and_then(|c| Some((c, c.read()?))) {
        match hip.load(&code) {
            Ok(module) => return Ok(module),
            Err(_) => cache.remove(),
        }
    }
    let code = compile::compile(&hip.library, hip.major, arch).map_err(|e| HipError::NoKernels {
        ordinal,
        arch: arch.to_owned(),
        processor: processor.to_owned(),
        carried: carried_names(),
        problem: problem + &e,
    })?;
    let module = hip.load(&code)?;
    if let Some(cache) = cache {
        // A cache that cannot be written costs time, nothing else.
        cache.write(&code).ok();
    }
    Ok(module)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_that_is_not_there_is_an_error_with_or_without_hip() {
        let message = Device::get(1000).unwrap_err().to_string();
        assert!(message.starts_with("no HIP runtime: ") || message.contains(" failed: hipError"), "{message}");
    }
}
