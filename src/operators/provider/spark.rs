//! The execution provider of this library, [`crate::plugin`].

use ort::AsPointer;
use ort::memory::{MemoryInfo, MemoryType};
use ort::operator::{ComputeContext, KernelContext};

use super::super::node::Failure;
use super::Provider;
use crate::gpu::plan::Plan;
use crate::gpu::{Device, Handle};
use crate::plugin;

pub(super) struct Spark;

impl Provider for Spark {
    const NAME: &'static str = plugin::name();

    fn device(context: &KernelContext<'_>) -> Result<&'static Device, Failure> {
        let allocator = context.allocator(MemoryType::Default)?;
        let of = offered(allocator.memory_info())?;
        Ok(Device::get(of.vendor(), of.ordinal())?)
    }

    /// # Safety
    /// As the trait says.
    unsafe fn run(
        _context: &ComputeContext,
        (device, stream): (&Device, Handle),
        memory: &MemoryInfo<'_>,
        mut plan: Plan,
    ) -> Result<(), Failure> {
        let bytes = plan.workspace_bytes;
        if bytes == 0 {
            // SAFETY: by this function's contract.
            return Ok(unsafe { device.queue(&plan, stream) }?);
        }
        // There is a plan that needs less.
        let optional = plan.unpacked_bytes() > 0;
        let launched = offered(memory)?.with_workspace(stream, bytes, optional, |workspace| {
            plan.set_workspace(workspace);
            // SAFETY: by this function's contract; the workspace is the stream's until the launches are queued, and
            // what is queued there later comes after them.
            unsafe { device.queue(&plan, stream) }
        });
        Ok(launched.map_err(|why| Failure::Workspace(bytes, why))??)
    }
}

/// The device that `memory` is of.
fn offered(memory: &MemoryInfo<'_>) -> Result<&'static plugin::Device, Failure> {
    // SAFETY: the memory info is ONNX Runtime's, of the session that makes or runs the kernel.
    unsafe { plugin::Device::of_memory(memory.ptr().cast()) }.map_err(Failure::Plugin)
}
