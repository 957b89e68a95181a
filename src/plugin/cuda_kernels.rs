//! The kernels of `ops/` on an NVIDIA GPU, by the CUDA driver.

use std::collections::{BTreeMap, HashMap};
use std::ffi::{CString, c_int};
use std::sync::{Mutex, PoisonError};

use super::driver::Handle;
use super::driver::cuda::CudaDriver;
use crate::hip::plan::{self, Plan};

/// Names the fatbin that `tools/cuda.sh build` makes of `ops/spark.hip`.
pub const CODE_VARIABLE: &str = "SPARK_CUDA_CODE";

/// Values of CUdevice_attribute.
const WARP_SIZE: c_int = 10;
const MULTIPROCESSOR_COUNT: c_int = 16;
const MAX_SHARED_MEMORY_PER_BLOCK_OPTIN: c_int = 97;

/// A device with the kernels loaded, once for the process.
pub struct CudaKernels {
    driver: &'static CudaDriver,
    ordinal: i32,
    for_plan: plan::Device,
    module: Handle,
    kernels: Mutex<HashMap<String, usize>>,
}

// SAFETY: handles of the driver may be used from any thread, and the map is locked.
unsafe impl Send for CudaKernels {}
// SAFETY: as above.
unsafe impl Sync for CudaKernels {}

impl CudaKernels {
    /// Device `ordinal` with the kernels loaded.
    ///
    /// # Errors
    /// If there is no driver, no such device, or no code for it; a later call tries again.
    pub fn get(ordinal: i32) -> Result<&'static Self, String> {
        static DEVICES: Mutex<BTreeMap<i32, &'static CudaKernels>> = Mutex::new(BTreeMap::new());
        let mut devices = DEVICES.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(&device) = devices.get(&ordinal) {
            return Ok(device);
        }
        let driver = CudaDriver::get()?;
        let attribute = |which| driver.attribute(ordinal, which);
        let for_plan = plan::Device {
            wave_size: attribute(WARP_SIZE)?,
            compute_units: attribute(MULTIPROCESSOR_COUNT)?,
            shared_bytes: attribute(MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
            matrix: false,
        };
        let code = fatbin()?;
        // SAFETY: the file begins as a fatbin does and has the length that its header says.
        let module = unsafe { driver.load(ordinal, &code) }?;
        let made = Self { driver, ordinal, for_plan, module, kernels: Mutex::default() };
        // Kept for as long as the process lives: sessions refer to it.
        let device: &'static Self = Box::leak(Box::new(made));
        devices.insert(ordinal, device);
        Ok(device)
    }

    /// What a plan must know of the device.
    pub fn for_plan(&self) -> plan::Device {
        self.for_plan
    }

    /// Queues all launches of `plan` on `stream`, a CUstream or null, and waits for none of them.
    ///
    /// # Safety
    /// The pointers in the plan's calls are device pointers to tensors of the sizes that the plan was made for, or null
    /// where it may be, and stay valid until the stream has run what is queued.
    ///
    /// # Errors
    /// If the stream is being captured, or a kernel cannot be found or launched; those before it stay queued.
    pub unsafe fn run(&self, plan: &Plan, stream: Handle) -> Result<(), String> {
        // SAFETY: the stream is one of this device, or null, by this function's contract.
        if unsafe { self.driver.is_capturing(self.ordinal, stream) }? {
            return Err(
                "the stream is being captured into a CUDA graph, which would replay the lengths of this call; set \
                        enable_cuda_graph to 0"
                    .into(),
            );
        }
        for launch in &plan.launches {
            let kernel = (self.ordinal, self.kernel(&launch.kernel)?, launch.kernel.as_str());
            let shape = (launch.grid, launch.block, launch.shared_bytes);
            // SAFETY: every kernel takes one Call; the rest is this function's contract.
            unsafe { self.driver.launch(kernel, shape, stream, (&raw const launch.call).cast()) }?;
        }
        Ok(())
    }

    fn kernel(&self, name: &str) -> Result<Handle, String> {
        let mut kernels = self.kernels.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(&kernel) = kernels.get(name) {
            return Ok(kernel as Handle);
        }
        let text = CString::new(name).expect("names of kernels have no zero byte");
        let kernel = self.driver.kernel((self.ordinal, self.module), &text, self.for_plan.shared_bytes)?;
        kernels.insert(name.to_owned(), kernel as usize);
        Ok(kernel)
    }
}

/// The fatbin that the environment names.
fn fatbin() -> Result<Vec<u8>, String> {
    /// Magic, version (16 bits), bytes of the header (16 bits), bytes after it (64 bits).
    const MAGIC: [u8; 4] = 0xba55_ed50_u32.to_le_bytes();
    let file = std::env::var_os(CODE_VARIABLE).ok_or_else(|| {
        format!("no kernels for NVIDIA GPUs: {CODE_VARIABLE} names no file; tools/cuda.sh build makes target/cuda/spark.fatbin")
    })?;
    let path = std::path::Path::new(&file);
    let code = std::fs::read(path).map_err(|e| format!("{CODE_VARIABLE}={}: {e}", path.display()))?;
    let whole = code.len() >= 16 && code[..4] == MAGIC && {
        let header = u16::from_le_bytes([code[6], code[7]]);
        let rest = u64::from_le_bytes(code[8..16].try_into().expect("eight bytes"));
        u64::from(header).checked_add(rest) == Some(code.len() as u64)
    };
    match whole {
        true => Ok(code),
        false => Err(format!("{CODE_VARIABLE}={} is no whole fatbin", path.display())),
    }
}
