//! Device memory for the time of a call, from ONNX Runtime's own arena.

use std::ffi::c_void;
use std::ptr::NonNull;

use ort::memory::{Allocator, MemoryInfo};
use ort::operator::ComputeContext;
use ort::{AsPointer, Error};

use super::super::node::Failure;
use crate::hip::Device;
use crate::hip::plan::Plan;

/// Runs `plan` on the call's stream, with a workspace next to a tensor of `memory`.
///
/// # Safety
/// As for [`Device::run`], the workspace aside.
pub(super) unsafe fn run(
    context: &ComputeContext,
    device: &Device,
    memory: &MemoryInfo<'_>,
    mut plan: Plan,
) -> Result<(), Failure> {
    let stream = context.stream()?;
    let workspace = match plan.workspace_bytes {
        0 => None,
        bytes => Some(Workspace::new(context, memory, stream, bytes)?),
    };
    if let Some(workspace) = &workspace {
        plan.set_workspace(workspace.address.as_ptr());
    }
    let stream = stream.map_or(std::ptr::null_mut(), NonNull::as_ptr);
    // SAFETY: by this function's contract. The workspace goes back to the arena when this function ends, before kernels
    // ran; the arena gives it to work that is queued later on the same stream only.
    Ok(unsafe { device.run(&plan, stream)? })
}

/// Memory of ONNX Runtime's arena, given back when dropped.
struct Workspace {
    allocator: Allocator,
    address: NonNull<c_void>,
}

impl Workspace {
    fn new(
        context: &ComputeContext,
        memory: &MemoryInfo<'_>,
        stream: Option<NonNull<c_void>>,
        bytes: usize,
    ) -> Result<Self, Failure> {
        let allocator = context.allocator(memory)?;
        let mut address = std::ptr::null_mut();
        // SAFETY: context and memory info are ONNX Runtime's for the duration of the call, and the out pointer is valid.
        // A scratch buffer belongs to the call's stream; ONNX Runtime dereferences a null pointer where there is none.
        let status = unsafe {
            match stream {
                Some(_) => {
                    (ort::api().KernelContext_GetScratchBuffer)(context.ptr(), memory.ptr(), bytes, &mut address)
                }
                None => (ort::api().AllocatorAlloc)(allocator.ptr().cast_mut(), bytes, &mut address),
            }
        };
        // SAFETY: the status was just returned and is used nowhere else.
        unsafe { Error::result_from_status(status) }?;
        let address = NonNull::new(address).ok_or_else(|| Error::new(format!("no {bytes} bytes of device memory")))?;
        Ok(Self { allocator, address })
    }
}

impl Drop for Workspace {
    fn drop(&mut self) {
        // SAFETY: it is of this allocator's arena and is given back once.
        unsafe { self.allocator.free(self.address.as_ptr()) };
    }
}
