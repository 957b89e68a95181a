//! ONNX Runtime's own providers with a GPU: ROCm's, up to version 1.22, and CUDA's, built in or as a plugin. Workspaces
//! come from ONNX Runtime's arena.

use std::ffi::c_void;
use std::ptr::NonNull;

use ort::memory::{Allocator, MemoryInfo, MemoryType};
use ort::operator::{ComputeContext, KernelContext};
use ort::{AsPointer, Error};

use super::super::node::Failure;
use super::Provider;
use crate::gpu::plan::Plan;
use crate::gpu::{Device, Handle, Vendor};

/// A provider that is ONNX Runtime's: its name, and whose GPUs it is for.
pub(super) trait BuiltIn: Send + Sync + 'static {
    const NAME: &'static str;
    const VENDOR: Vendor;
}

pub(super) struct Rocm;

impl BuiltIn for Rocm {
    const NAME: &'static str = "ROCMExecutionProvider";
    const VENDOR: Vendor = Vendor::Amd;
}

pub(super) struct Cuda;

impl BuiltIn for Cuda {
    const NAME: &'static str = "CUDAExecutionProvider";
    const VENDOR: Vendor = Vendor::Nvidia;
}

impl<B: BuiltIn> Provider for B {
    const NAME: &'static str = B::NAME;

    fn device(context: &KernelContext<'_>) -> Result<&'static Device, Failure> {
        let ordinal = context.allocator(MemoryType::Default)?.memory_info().device_id();
        Ok(Device::get(B::VENDOR, ordinal)?)
    }

    /// # Safety
    /// As the trait says.
    unsafe fn run(
        context: &ComputeContext,
        (device, stream): (&Device, Handle),
        memory: &MemoryInfo<'_>,
        mut plan: Plan,
    ) -> Result<(), Failure> {
        let workspace = match plan.workspace_bytes {
            0 => None,
            bytes => Some(Workspace::new(context, memory, stream, bytes)?),
        };
        if let Some(workspace) = &workspace {
            plan.set_workspace(workspace.address.as_ptr());
        }
        // SAFETY: by this function's contract. The workspace goes back to the arena when this function ends, before
        // kernels ran; the arena gives it to work that is queued later on the same stream only.
        unsafe { device.queue(&plan, stream) }?;
        Ok(())
    }
}

/// Memory of ONNX Runtime's arena, given back when dropped.
struct Workspace {
    allocator: Allocator,
    address: NonNull<c_void>,
}

impl Workspace {
    fn new(context: &ComputeContext, memory: &MemoryInfo<'_>, stream: Handle, bytes: usize) -> Result<Self, Failure> {
        let none = || Failure::Workspace(bytes, "ONNX Runtime gives none".into());
        let allocator = context.allocator(memory)?;
        let plain = allocator.alloc::<u8>(bytes).map_err(|e| Failure::Workspace(bytes, e.to_string()))?;
        if stream.is_null() {
            let address = NonNull::new(plain.into_raw()).ok_or_else(none)?;
            return Ok(Self { allocator, address });
        }
        // With several streams the memory must be the stream's: only a scratch buffer is. Where there is no memory for
        // one, ONNX Runtime (1.22 at least) ends the process; hence the attempt before, which leaves this much free.
        drop(plain);
        let mut address = std::ptr::null_mut();
        // SAFETY: context and memory info are ONNX Runtime's for the duration of the call, the out pointer is valid,
        // and there is a stream, which ONNX Runtime would not check. The status is taken over here.
        unsafe {
            let scratch = ort::api().KernelContext_GetScratchBuffer;
            Error::result_from_status(scratch(context.ptr(), memory.ptr(), bytes, &mut address))?;
        }
        let address = NonNull::new(address).ok_or_else(none)?;
        Ok(Self { allocator, address })
    }
}

impl Drop for Workspace {
    fn drop(&mut self) {
        // SAFETY: it is of this allocator's arena and is given back once.
        unsafe { self.allocator.free(self.address.as_ptr()) };
    }
}
