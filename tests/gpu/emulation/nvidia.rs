//! The kernels' tests on an NVIDIA GPU.

use std::ffi::c_void;

use spark_ort::gpu::plan::{Device, Plan};

use super::gpu::{Allocation, Gpu};
use crate::cuda::Cuda;
use crate::cuda::graph::Stream;
use crate::cuda::memory::Buffer;

/// Bytes before and behind each tensor that kernels must leave alone. The first byte after them is aligned to 4 bytes
/// and no more, which is all that plans ask for.
const GUARD: usize = 260;
const GUARD_BYTE: u8 = 0xC5;

struct Guarded {
    buffer: Buffer<'static>,
    bytes: usize,
}

impl Gpu for Cuda {
    fn device(&self, wanted: &Device) -> Device {
        // Kernels for matrix cores are for the AMD GPUs that have them.
        let own = self.properties().for_plan;
        Device { wave_size: own.wave_size, matrix: own.matrix, ..*wanted }
    }

    fn allocate(&'static self, bytes: &[u8]) -> Box<dyn Allocation> {
        let guard = [GUARD_BYTE; GUARD];
        let buffer = self.memory_of(&[&guard, bytes, &guard].concat()).unwrap();
        Box::new(Guarded { buffer, bytes: bytes.len() })
    }

    fn run(&self, plan: &Plan, _wave: u32) -> Result<(), String> {
        // SAFETY: the pointers of plans in tests are those of `allocate`, and nothing is queued when this returns.
        unsafe { self.queue(plan, &Stream::DEFAULT)? };
        self.synchronize()
    }
}

impl Allocation for Guarded {
    fn at(&self) -> *mut c_void {
        self.buffer.at(GUARD)
    }

    fn bytes(&self) -> Vec<u8> {
        let mut all = self.buffer.read(0, self.buffer.len()).unwrap();
        let intact = |guard: &[u8]| guard.iter().all(|&b| b == GUARD_BYTE);
        assert!(intact(&all[..GUARD]), "a kernel wrote before a tensor");
        assert!(intact(&all[GUARD + self.bytes..]), "a kernel wrote behind a tensor");
        all.truncate(GUARD + self.bytes);
        all.split_off(GUARD)
    }
}
