//! OrtDataTransferImpl: copies between the host and a device, or within one.

use std::ffi::c_void;

use ort::sys::OrtMemoryInfoDeviceType as Kind;

use super::abi::{self, MemoryDevice, Status, SyncStream, VERSION, Value};
use super::device::Device;
use super::driver::Handle;
use super::host::{Failure, Host, ok};

/// The transfer of a registration.
#[repr(C)]
pub struct Transfer {
    abi: abi::DataTransfer,
    host: &'static Host,
}

impl Transfer {
    pub fn create(host: &'static Host) -> *mut abi::DataTransfer {
        let abi =
            abi::DataTransfer { version: VERSION, Release: release, CanCopy: can_copy, CopyTensors: copy_tensors };
        Box::into_raw(Box::new(Self { abi, host })).cast()
    }

    /// # Safety
    /// `this` is of [`Transfer::create`] and not yet released.
    unsafe fn of<'a>(this: *const abi::DataTransfer) -> &'a Self {
        // SAFETY: by this function's contract; `abi` is the first member.
        unsafe { &*this.cast::<Self>() }
    }
}

/// # Safety
/// Only ONNX Runtime may call this, with pointers that it was given.
unsafe extern "system" fn release(this: *mut abi::DataTransfer) {
    // SAFETY: ONNX Runtime passes pointers that it was given, for the last time.
    drop(unsafe { Box::from_raw(this.cast::<Transfer>()) });
}

/// # Safety
/// Only ONNX Runtime may call this, with pointers that it was given.
unsafe extern "system" fn can_copy(
    this: *const abi::DataTransfer,
    from: *const MemoryDevice,
    to: *const MemoryDevice,
) -> bool {
    // SAFETY: ONNX Runtime passes pointers that it was given.
    let host = unsafe { Transfer::of(this) }.host;
    // SAFETY: both are ONNX Runtime's.
    let (from, to) = unsafe { (Place::of(host, from), Place::of(host, to)) };
    match (from, to) {
        (Place::Device(from), Place::Device(to)) => std::ptr::eq(from, to),
        (Place::Device(_), Place::Host) | (Place::Host, Place::Device(_)) => true,
        _ => false,
    }
}

/// # Safety
/// Only ONNX Runtime may call this, with pointers that it was given.
unsafe extern "system" fn copy_tensors(
    this: *mut abi::DataTransfer,
    from: *const *const Value,
    to: *const *mut Value,
    streams: *const *mut SyncStream,
    count: usize,
) -> Status {
    // SAFETY: ONNX Runtime passes pointers that it was given.
    let host = unsafe { Transfer::of(this) }.host;
    host.answer(|| {
        for i in 0..count {
            // SAFETY: the arrays have `count` entries, the last one may be null.
            let (from, to, stream) = unsafe {
                (*from.add(i), *to.add(i), if streams.is_null() { std::ptr::null_mut() } else { *streams.add(i) })
            };
            let handle = match stream.is_null() {
                true => None,
                // SAFETY: the stream is ONNX Runtime's.
                false => Some(unsafe { (host.api.SyncStream_GetHandle)(stream) }),
            };
            // SAFETY: both are tensors of ONNX Runtime of the same size.
            unsafe { copy(host, from, to, handle) }?;
        }
        Ok(())
    })
}

/// Where memory is.
enum Place {
    Host,
    /// Memory of a device, or host memory of its pool.
    Device(&'static Device),
    /// Other memory.
    Unknown,
}

impl Place {
    /// # Safety
    /// `memory` is ONNX Runtime's, or null.
    unsafe fn of(host: &Host, memory: *const MemoryDevice) -> Self {
        if memory.is_null() {
            return Self::Unknown;
        }
        // SAFETY: by this function's contract.
        let (kind, vendor, id) = unsafe {
            let api = &host.ep;
            (
                (api.MemoryDevice_GetDeviceType)(memory),
                (api.MemoryDevice_GetVendorId)(memory),
                (api.MemoryDevice_GetDeviceId)(memory),
            )
        };
        if kind == Kind::OrtMemoryInfoDeviceType_CPU as i32 {
            return Self::Host;
        }
        let known = i32::try_from(id).ok().filter(|_| kind == Kind::OrtMemoryInfoDeviceType_GPU as i32);
        known.and_then(|id| Device::of(vendor, id)).map_or(Self::Unknown, Self::Device)
    }
}

/// Copies tensor `from` to tensor `to`, in stream order if there is a stream. A copy without a stream, or to host
/// memory, is complete when this returns.
///
/// # Safety
/// Both are tensors of ONNX Runtime of the same size in bytes, which stay valid until the stream has run the copy.
pub unsafe fn copy(host: &Host, from: *const Value, to: *mut Value, stream: Option<Handle>) -> Result<(), Failure> {
    let (mut source, mut target, mut bytes, mut room): (*const c_void, *mut c_void, usize, usize) =
        (std::ptr::null(), std::ptr::null_mut(), 0, 0);
    // SAFETY: by this function's contract, and the out pointers are valid.
    let (source_place, target_place) = unsafe {
        ok((host.api.GetTensorData)(from, &mut source))?;
        ok((host.api.GetTensorMutableData)(to, &mut target))?;
        ok((host.api.GetTensorSizeInBytes)(from, &mut bytes))?;
        ok((host.api.GetTensorSizeInBytes)(to, &mut room))?;
        (Place::of(host, (host.ep.Value_GetMemoryDevice)(from)), Place::of(host, (host.ep.Value_GetMemoryDevice)(to)))
    };
    let device = match (&source_place, &target_place) {
        (Place::Device(device), _) | (_, Place::Device(device)) => *device,
        _ => return Err("a copy between places that are not a device's".to_owned().into()),
    };
    if bytes != room {
        return Err(format!("a copy of {bytes} bytes to a tensor of {room}").into());
    }
    if bytes == 0 {
        return Ok(());
    }
    if source.is_null() || target.is_null() {
        return Err(format!(
            "out of memory: a copy of {bytes} bytes has no {}",
            if source.is_null() { "source" } else { "target" }
        )
        .into());
    }
    let queue = stream.unwrap_or(std::ptr::null_mut());
    // SAFETY: by this function's contract; the tensors have this many bytes.
    unsafe { device.driver.copy(device.ordinal, target, source, bytes, queue) }?;
    if stream.is_none() || matches!(target_place, Place::Host) {
        // SAFETY: the stream is ONNX Runtime's for this call, or null.
        unsafe { device.driver.synchronize_stream(device.ordinal, queue) }?;
    }
    Ok(())
}
