//! The execution provider of this library, [`crate::plugin`].

use std::ptr::NonNull;

use ort::AsPointer;
use ort::memory::{MemoryInfo, MemoryType};
use ort::operator::{ComputeContext, KernelContext};

use super::super::node::Failure;
use super::Provider;
use crate::hip;
use crate::hip::plan::{self, Plan};
use crate::plugin;
use crate::plugin::driver::Vendor;

pub(super) struct Spark;

/// A device of the provider with the kernels loaded.
#[derive(Clone, Copy)]
pub(super) struct Device {
    /// Whose memory and streams they are.
    of: &'static plugin::Device,
    kernels: Kernels,
}

/// The kernels, by the vendor of the device.
#[derive(Clone, Copy)]
enum Kernels {
    Hip(&'static hip::Device),
    Cuda(&'static plugin::CudaKernels),
}

impl Provider for Spark {
    const NAME: &'static str = "SparkExecutionProvider";

    type Device = Device;

    fn device(context: &KernelContext<'_>) -> Result<Self::Device, Failure> {
        let allocator = context.allocator(MemoryType::Default)?;
        // SAFETY: the memory info is ONNX Runtime's, of the session that makes the kernel.
        let of = unsafe { plugin::Device::of_memory(allocator.memory_info().ptr().cast()) }.map_err(Failure::Plugin)?;
        let kernels = match of.vendor() {
            Vendor::Amd => Kernels::Hip(hip::Device::get(of.ordinal())?),
            Vendor::Nvidia => Kernels::Cuda(plugin::CudaKernels::get(of.ordinal()).map_err(Failure::Plugin)?),
        };
        Ok(Device { of, kernels })
    }

    fn for_plan(device: Self::Device) -> plan::Device {
        match device.kernels {
            Kernels::Hip(kernels) => kernels.for_plan(),
            Kernels::Cuda(kernels) => kernels.for_plan(),
        }
    }

    unsafe fn run(
        device: Self::Device,
        context: &ComputeContext,
        _memory: &MemoryInfo<'_>,
        mut plan: Plan,
    ) -> Result<(), Failure> {
        let stream = context.stream()?.map_or(std::ptr::null_mut(), NonNull::as_ptr);
        let bytes = plan.workspace_bytes;
        let none = |e| Failure::Plugin(format!("no device memory for a workspace of {bytes} bytes: {e}"));
        let launched = device.of.with_workspace(stream, bytes, |workspace| {
            if bytes > 0 {
                plan.set_workspace(workspace);
            }
            match device.kernels {
                // SAFETY: by this function's contract; the workspace is the stream's until the launches are queued, and
                // what is queued there later comes after them.
                Kernels::Hip(kernels) => unsafe { kernels.run(&plan, stream) }.map_err(Failure::Device),
                // SAFETY: as above.
                Kernels::Cuda(kernels) => unsafe { kernels.run(&plan, stream) }.map_err(Failure::Plugin),
            }
        });
        launched.map_err(none)?
    }
}
