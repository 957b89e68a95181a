//! OrtEp: the provider in one session, on one device.

use std::ffi::{CStr, c_char};

use super::NAME;
use super::abi::{self, Graph, GraphSupportInfo, KernelRegistry, MemoryDevice, Node, RunOptions, Status, VERSION};
use super::device::Device;
use super::host::{Failure, Host, ok};
use super::stream::{self, Streams};
use crate::spec::DOMAIN;

#[repr(C)]
pub struct Ep {
    abi: abi::Ep,
    host: &'static Host,
    device: &'static Device,
    /// The factory's registry, which outlives the provider.
    registry: *const KernelRegistry,
    streams: Streams,
}

impl Ep {
    pub fn create(host: &'static Host, device: &'static Device, registry: *const KernelRegistry) -> *mut abi::Ep {
        let abi = abi::Ep {
            version: VERSION,
            GetName: name,
            GetCapability: capability,
            Compile: None,
            ReleaseNodeComputeInfos: None,
            GetPreferredDataLayout: None,
            ShouldConvertDataLayoutForOp: None,
            SetDynamicOptions: None,
            OnRunStart: None,
            OnRunEnd: on_run_end,
            CreateAllocator: None,
            CreateSyncStreamForDevice: create_stream,
            GetCompiledModelCompatibilityInfo: None,
            GetKernelRegistry: kernel_registry,
            IsConcurrentRunSupported: None,
        };
        Box::into_raw(Box::new(Self { abi, host, device, registry, streams: Streams::default() })).cast()
    }

    /// # Safety
    /// `this` is of [`Ep::create`] and is not used afterwards.
    pub unsafe fn release(this: *mut abi::Ep) {
        // SAFETY: by this function's contract.
        drop(unsafe { Box::from_raw(this.cast::<Self>()) });
    }

    /// # Safety
    /// `this` is of [`Ep::create`] and not yet released.
    unsafe fn of<'a>(this: *const abi::Ep) -> &'a Self {
        // SAFETY: by this function's contract; `abi` is the first member.
        unsafe { &*this.cast::<Self>() }
    }
}

/// # Safety
/// Only ONNX Runtime may call this, with pointers that it was given.
unsafe extern "system" fn name(_this: *const abi::Ep) -> *const c_char {
    NAME.as_ptr()
}

/// Claims the nodes of the operators' domain whose types and version have a kernel for this provider.
///
/// # Safety
/// Only ONNX Runtime may call this, with pointers that it was given.
unsafe extern "system" fn capability(
    this: *mut abi::Ep,
    graph: *const Graph,
    support: *mut GraphSupportInfo,
) -> Status {
    // SAFETY: ONNX Runtime passes pointers that it was given.
    let host = unsafe { Ep::of(this) }.host;
    host.answer(|| {
        let mut count = 0;
        // SAFETY: the graph is ONNX Runtime's, and the out pointer is valid.
        ok(unsafe { (host.api.Graph_GetNumNodes)(graph, &mut count) })?;
        let mut nodes: Vec<*const Node> = vec![std::ptr::null(); count];
        // SAFETY: as above; the buffer has as many entries as the graph has nodes.
        ok(unsafe { (host.api.Graph_GetNodes)(graph, nodes.as_mut_ptr(), count) })?;
        // SAFETY: nodes and support are ONNX Runtime's.
        nodes.into_iter().filter(|node| !node.is_null()).try_for_each(|node| unsafe { claim(host, node, support) })
    })
}

/// # Safety
/// `node` and `support` are ONNX Runtime's.
unsafe fn claim(host: &Host, node: *const Node, support: *mut GraphSupportInfo) -> Result<(), Failure> {
    let (mut domain, mut kernel) = (std::ptr::null(), std::ptr::null());
    // SAFETY: by this function's contract; the out pointers are valid.
    unsafe {
        ok((host.api.Node_GetDomain)(node, &mut domain))?;
        if domain.is_null() || CStr::from_ptr(domain).to_bytes() != DOMAIN.as_bytes() {
            return Ok(());
        }
        ok((host.ep.EpGraphSupportInfo_LookUpKernel)(support, node, &mut kernel))?;
        match kernel.is_null() {
            true => Ok(()),
            false => ok((host.ep.EpGraphSupportInfo_AddSingleNode)(support, node)),
        }
    }
}

/// Waits for the device at the end of a run if asked to, so that kernel faults become the run's error: ONNX Runtime
/// only logs errors of streams.
///
/// # Safety
/// Only ONNX Runtime may call this, with pointers that it was given.
unsafe extern "system" fn on_run_end(this: *mut abi::Ep, _options: *const RunOptions, synchronize: bool) -> Status {
    // SAFETY: ONNX Runtime passes pointers that it was given.
    let &Ep { host, device, ref streams, .. } = unsafe { Ep::of(this) };
    host.answer(|| if synchronize { Ok(streams.synchronize(device)?) } else { Ok(()) })
}

/// # Safety
/// Only ONNX Runtime may call this, with pointers that it was given.
unsafe extern "system" fn create_stream(
    this: *mut abi::Ep,
    memory: *const MemoryDevice,
    stream: *mut *mut abi::Stream,
) -> Status {
    // SAFETY: ONNX Runtime passes pointers that it was given.
    let &Ep { host, device, ref streams, .. } = unsafe { Ep::of(this) };
    host.answer(|| {
        // SAFETY: the memory device is ONNX Runtime's, and the out pointer is valid.
        unsafe {
            let id = (host.ep.MemoryDevice_GetDeviceId)(memory);
            if i64::from(id) != i64::from(device.memory_id) {
                return Err(
                    format!("a stream for memory {id}, where the session has memory {}", device.memory_id).into()
                );
            }
            *stream = stream::create(host, device, streams)?;
        }
        Ok(())
    })
}

/// # Safety
/// Only ONNX Runtime may call this, with pointers that it was given.
unsafe extern "system" fn kernel_registry(this: *mut abi::Ep, registry: *mut *const KernelRegistry) -> Status {
    // SAFETY: ONNX Runtime passes pointers that it was given, and the out pointer is valid.
    unsafe { *registry = Ep::of(this).registry };
    std::ptr::null_mut()
}
