//! MemcpyFromHost and MemcpyToHost, the nodes that ONNX Runtime inserts between providers. Without its own kernels the
//! provider would get the CPU's, for which the planner waits on a stream that does not exist.

use std::ffi::{CStr, c_int, c_void};

use ort::sys::OrtMemType;

use super::NAME;
use super::abi::{self, KernelContext, KernelInfo, KernelRegistry, Status, VERSION};
use super::host::{Failure, Host, ok};
use super::transfer;

/// Every ONNXTensorElementDataType but strings: float32, the integers of 8 and 16 bits, int32, int64, bool, float16,
/// float64, uint32, uint64, bfloat16.
const ELEMENTS: [c_int; 13] = [1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 12, 13, 16];

/// A registry with both kernels.
pub fn registry(host: &'static Host) -> Result<*mut KernelRegistry, Failure> {
    let mut registry = std::ptr::null_mut();
    // SAFETY: the out pointer is valid.
    ok(unsafe { (host.ep.CreateKernelRegistry)(&mut registry) })?;
    for (name, to_host) in [(c"MemcpyFromHost", false), (c"MemcpyToHost", true)] {
        add(host, registry, name, to_host)?;
    }
    Ok(registry)
}

fn add(host: &'static Host, registry: *mut KernelRegistry, name: &CStr, to_host: bool) -> Result<(), Failure> {
    let api = &host.ep;
    let types = ELEMENTS.map(|element| {
        let mut data_type = std::ptr::null();
        // SAFETY: the out pointer is valid.
        ok(unsafe { (api.GetTensorDataType)(element, &mut data_type) }).map(|()| data_type)
    });
    let types = types.into_iter().collect::<Result<Vec<_>, _>>()?;
    let (mut builder, mut definition) = (std::ptr::null_mut(), std::ptr::null_mut());
    // SAFETY: the pointers are valid, ONNX Runtime copies the strings, and each object is released once. On an error
    // the builder is leaked, which is acceptable since the registration fails.
    unsafe {
        ok((api.CreateKernelDefBuilder)(&mut builder))?;
        ok((api.KernelDefBuilder_SetOperatorType)(builder, name.as_ptr()))?;
        ok((api.KernelDefBuilder_SetDomain)(builder, c"".as_ptr()))?;
        ok((api.KernelDefBuilder_SetSinceVersion)(builder, 1, c_int::MAX))?;
        ok((api.KernelDefBuilder_SetExecutionProvider)(builder, NAME.as_ptr()))?;
        ok(match to_host {
            true => (api.KernelDefBuilder_SetOutputMemType)(builder, 0, OrtMemType::OrtMemTypeCPUOutput),
            false => (api.KernelDefBuilder_SetInputMemType)(builder, 0, OrtMemType::OrtMemTypeCPUInput),
        })?;
        ok((api.KernelDefBuilder_AddTypeConstraint)(builder, c"T".as_ptr(), types.as_ptr(), types.len()))?;
        ok((api.KernelDefBuilder_Build)(builder, &mut definition))?;
        let state = std::ptr::from_ref(host).cast_mut().cast();
        let added = ok((api.KernelRegistry_AddKernel)(registry, definition, create, state));
        (api.ReleaseKernelDef)(definition);
        (api.ReleaseKernelDefBuilder)(builder);
        added
    }
}

/// The kernel of one node.
#[repr(C)]
struct Memcpy {
    abi: abi::Kernel,
    host: &'static Host,
}

/// # Safety
/// Only ONNX Runtime may call this, with pointers that it was given.
unsafe extern "system" fn create(
    state: *mut c_void,
    _info: *const KernelInfo,
    kernel: *mut *mut abi::Kernel,
) -> Status {
    // SAFETY: the state is the host that was given when the kernel was added, which lives as long as the process.
    let host: &'static Host = unsafe { &*state.cast::<Host>() };
    let abi = abi::Kernel {
        version: VERSION,
        flags: 0,
        Compute: compute,
        Release: release,
        PrePackWeight: None,
        SetSharedPrePackedWeight: None,
    };
    // SAFETY: the out pointer is ONNX Runtime's.
    unsafe { *kernel = Box::into_raw(Box::new(Memcpy { abi, host })).cast() };
    std::ptr::null_mut()
}

/// # Safety
/// Only ONNX Runtime may call this, with pointers that it was given.
unsafe extern "system" fn release(this: *mut abi::Kernel) {
    // SAFETY: ONNX Runtime passes pointers that it was given, for the last time.
    drop(unsafe { Box::from_raw(this.cast::<Memcpy>()) });
}

/// # Safety
/// Only ONNX Runtime may call this, with pointers that it was given.
unsafe extern "system" fn compute(this: *mut abi::Kernel, context: *mut KernelContext) -> Status {
    // SAFETY: ONNX Runtime passes pointers that it was given.
    let host = unsafe { &*this.cast::<Memcpy>() }.host;
    host.answer(|| {
        let (mut input, mut output, mut stream) = (std::ptr::null(), std::ptr::null_mut(), std::ptr::null_mut());
        // SAFETY: the context is ONNX Runtime's, and the out pointers are valid.
        unsafe { ok((host.api.KernelContext_GetInput)(context, 0, &mut input)) }?;
        if input.is_null() {
            return Ok(());
        }
        // SAFETY: as above; the input is a tensor, since the kernels are registered only for tensors.
        let dimensions = unsafe { dimensions(host, input) }?;
        // SAFETY: as above; output and input are of the same type and shape.
        unsafe {
            let shape = (dimensions.as_ptr(), dimensions.len());
            ok((host.api.KernelContext_GetOutput)(context, 0, shape.0, shape.1, &mut output))?;
            ok((host.api.KernelContext_GetGPUComputeStream)(context, &mut stream))?;
            transfer::copy(host, input, output, (!stream.is_null()).then_some(stream))
        }
    })
}

/// # Safety
/// `value` is a tensor of ONNX Runtime.
unsafe fn dimensions(host: &Host, value: *const abi::Value) -> Result<Vec<i64>, Failure> {
    let (mut info, mut rank) = (std::ptr::null_mut(), 0);
    // SAFETY: by this function's contract; the out pointers are valid, the buffer has the rank asked for, and the
    // information is released once.
    unsafe {
        ok((host.api.GetTensorTypeAndShape)(value, &mut info))?;
        let counted = ok((host.api.GetDimensionsCount)(info, &mut rank));
        let mut dimensions = vec![0; rank];
        let read = counted.and_then(|()| ok((host.api.GetDimensions)(info, dimensions.as_mut_ptr(), rank)));
        (host.api.ReleaseTensorTypeAndShapeInfo)(info);
        read.map(|()| dimensions)
    }
}
