//! The GPU that tests of kernels run on: the emulated one, or the NVIDIA one of this machine. Plans, cases and
//! comparisons are the same.

use std::ffi::c_void;
use std::sync::OnceLock;

use spark_ort::gpu::plan::{Device, Plan};

use super::Emulation;
use crate::cuda::Cuda;

/// Set to `cuda`: the NVIDIA GPU. Unset or empty: the emulation.
pub const GPU_VARIABLE: &str = "SPARK_TEST_GPU";

/// What runs launches of kernels.
pub trait Gpu: Sync {
    /// What plans are to know of this GPU where a test would have `wanted`.
    fn device(&self, wanted: &Device) -> Device;

    /// Memory with `bytes` in it, which kernels may touch while it lives.
    fn allocate(&'static self, bytes: &[u8]) -> Box<dyn Allocation>;

    /// Runs the launches of `plan` in order, to their end; an error of the first one that fails.
    fn run(&self, plan: &Plan, wave: u32) -> Result<(), String>;
}

/// Memory of a [`Gpu`].
pub trait Allocation {
    /// Where kernels find it.
    fn at(&self) -> *mut c_void;

    /// What it holds; no kernel is running.
    ///
    /// # Panics
    /// If a kernel has written beside it, as far as that can be seen.
    fn bytes(&self) -> Vec<u8>;
}

/// The one of this process.
pub fn gpu() -> &'static dyn Gpu {
    static CUDA: OnceLock<Cuda> = OnceLock::new();
    match std::env::var(GPU_VARIABLE).unwrap_or_default().as_str() {
        "" => Emulation::get(),
        "cuda" => CUDA.get_or_init(|| Cuda::open().unwrap_or_else(|e| panic!("{GPU_VARIABLE}=cuda: {e}"))),
        other => panic!("{GPU_VARIABLE}={other}: there is only cuda"),
    }
}

/// Memory of [`gpu`].
pub struct Memory(Box<dyn Allocation>);

impl Memory {
    /// Of `bytes`.
    pub fn new(bytes: &[u8]) -> Self {
        Self(gpu().allocate(bytes))
    }

    /// Where it begins.
    pub fn at(&self) -> *mut c_void {
        self.0.at()
    }

    /// What it holds.
    pub fn bytes(&self) -> Vec<u8> {
        self.0.bytes()
    }
}
