//! OrtSyncStreamImpl and OrtSyncNotificationImpl: a driver stream, and events in it that others wait for.

use std::ffi::c_void;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};

use super::abi::{self, Status, SyncStream, VERSION};
use super::device::Device;
use super::driver::Handle;
use super::host::{Failure, Host};

/// The streams of one session, as addresses.
#[derive(Clone, Default)]
pub struct Streams(Arc<Mutex<Vec<usize>>>);

impl Streams {
    /// Waits for all streams. If there are none, the session's work is on the stream of another provider, and this
    /// waits for the whole device.
    ///
    /// # Errors
    /// If one of their kernels or copies failed.
    pub fn synchronize(&self, device: &Device) -> Result<(), String> {
        // Locked while waiting, so that no stream is destroyed meanwhile.
        let streams = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if streams.is_empty() {
            return device.driver.synchronize(device.ordinal);
        }
        streams.iter().try_for_each(|&stream| {
            // SAFETY: a stream leaves the list before it is destroyed.
            unsafe { device.driver.synchronize_stream(device.ordinal, stream as Handle) }
        })
    }
}

#[repr(C)]
struct Stream {
    abi: abi::Stream,
    host: &'static Host,
    device: &'static Device,
    handle: Handle,
    of_session: Streams,
}

/// Creates a stream of `device` and adds it to `of_session`.
pub fn create(host: &'static Host, device: &'static Device, of_session: &Streams) -> Result<*mut abi::Stream, Failure> {
    let handle = device.driver.create_stream(device.ordinal)?;
    of_session.0.lock().unwrap_or_else(PoisonError::into_inner).push(handle as usize);
    let abi = abi::Stream {
        version: VERSION,
        Release: release,
        GetHandle: handle_of,
        CreateNotification: create_notification,
        Flush: flush,
        OnSessionRunEnd: on_run_end,
    };
    Ok(Box::into_raw(Box::new(Stream { abi, host, device, handle, of_session: of_session.clone() })).cast())
}

impl Stream {
    /// # Safety
    /// `this` is of [`create`] and not yet released.
    unsafe fn of<'a>(this: *const abi::Stream) -> &'a Self {
        // SAFETY: by this function's contract; `abi` is the first member.
        unsafe { &*this.cast::<Self>() }
    }
}

/// # Safety
/// Only ONNX Runtime may call this, with pointers that it was given.
unsafe extern "system" fn release(this: *mut abi::Stream) {
    // SAFETY: ONNX Runtime passes pointers that it was given, for the last time.
    let stream = unsafe { Box::from_raw(this.cast::<Stream>()) };
    let _ = catch_unwind(AssertUnwindSafe(|| {
        let Stream { device, handle, ref of_session, .. } = *stream;
        of_session.0.lock().unwrap_or_else(PoisonError::into_inner).retain(|&other| other != handle as usize);
        // SAFETY: the stream is valid, and nothing is queued on it any more. Errors were reported when the run ended.
        let _ = unsafe { device.driver.synchronize_stream(device.ordinal, handle) };
        device.retire(handle);
        // SAFETY: as above.
        let _ = unsafe { device.driver.destroy_stream(device.ordinal, handle) };
    }));
}

/// # Safety
/// Only ONNX Runtime may call this, with pointers that it was given.
unsafe extern "system" fn handle_of(this: *mut abi::Stream) -> *mut c_void {
    // SAFETY: ONNX Runtime passes pointers that it was given.
    unsafe { Stream::of(this) }.handle
}

/// # Safety
/// Only ONNX Runtime may call this, with pointers that it was given.
unsafe extern "system" fn create_notification(
    this: *mut abi::Stream,
    notification: *mut *mut abi::Notification,
) -> Status {
    // SAFETY: ONNX Runtime passes pointers that it was given.
    let &Stream { host, device, handle, .. } = unsafe { Stream::of(this) };
    host.answer(|| {
        let event = device.driver.create_event(device.ordinal)?;
        let abi = abi::Notification {
            version: VERSION,
            Release: release_notification,
            Activate: activate,
            WaitOnDevice: wait_on_device,
            WaitOnHost: wait_on_host,
        };
        let made = Box::new(Notification { abi, host, device, stream: handle, event });
        // SAFETY: the out pointer is ONNX Runtime's.
        unsafe { *notification = Box::into_raw(made).cast() };
        Ok(())
    })
}

/// # Safety
/// Only ONNX Runtime may call this, with pointers that it was given.
unsafe extern "system" fn flush(this: *mut abi::Stream) -> Status {
    // SAFETY: ONNX Runtime passes pointers that it was given.
    let &Stream { host, device, handle, .. } = unsafe { Stream::of(this) };
    // SAFETY: the stream lives.
    host.answer(|| Ok(unsafe { device.driver.synchronize_stream(device.ordinal, handle) }?))
}

/// # Safety
/// Only ONNX Runtime may call this, with pointers that it was given.
unsafe extern "system" fn on_run_end(_this: *mut abi::Stream) -> Status {
    std::ptr::null_mut()
}

#[repr(C)]
struct Notification {
    abi: abi::Notification,
    host: &'static Host,
    device: &'static Device,
    stream: Handle,
    event: Handle,
}

impl Notification {
    /// # Safety
    /// `this` is of [`create_notification`] and not yet released.
    unsafe fn of<'a>(this: *const abi::Notification) -> &'a Self {
        // SAFETY: by this function's contract; `abi` is the first member.
        unsafe { &*this.cast::<Self>() }
    }
}

/// # Safety
/// Only ONNX Runtime may call this, with pointers that it was given.
unsafe extern "system" fn release_notification(this: *mut abi::Notification) {
    // SAFETY: ONNX Runtime passes pointers that it was given, for the last time.
    let notification = unsafe { Box::from_raw(this.cast::<Notification>()) };
    let Notification { device, event, .. } = *notification;
    // SAFETY: the event is not used any more; the driver keeps it until the work that waits for it has run.
    let _ = catch_unwind(AssertUnwindSafe(|| unsafe { device.driver.destroy_event(device.ordinal, event) }));
}

/// # Safety
/// Only ONNX Runtime may call this, with pointers that it was given.
unsafe extern "system" fn activate(this: *mut abi::Notification) -> Status {
    // SAFETY: ONNX Runtime passes pointers that it was given.
    let &Notification { host, device, stream, event, .. } = unsafe { Notification::of(this) };
    // SAFETY: a notification is released before its stream.
    host.answer(|| Ok(unsafe { device.driver.record(device.ordinal, event, stream) }?))
}

/// # Safety
/// Only ONNX Runtime may call this, with pointers that it was given.
unsafe extern "system" fn wait_on_device(this: *mut abi::Notification, consumer: *mut SyncStream) -> Status {
    // SAFETY: ONNX Runtime passes pointers that it was given.
    let &Notification { host, device, event, .. } = unsafe { Notification::of(this) };
    host.answer(|| {
        if consumer.is_null() {
            // The consumer has no stream: wait here.
            // SAFETY: the event is valid.
            return Ok(unsafe { device.driver.synchronize_event(device.ordinal, event) }?);
        }
        // SAFETY: the stream is ONNX Runtime's, and the event lives.
        Ok(unsafe { device.driver.wait(device.ordinal, (host.api.SyncStream_GetHandle)(consumer), event) }?)
    })
}

/// # Safety
/// Only ONNX Runtime may call this, with pointers that it was given.
unsafe extern "system" fn wait_on_host(this: *mut abi::Notification) -> Status {
    // SAFETY: ONNX Runtime passes pointers that it was given.
    let &Notification { host, device, event, .. } = unsafe { Notification::of(this) };
    // SAFETY: the event lives.
    host.answer(|| Ok(unsafe { device.driver.synchronize_event(device.ordinal, event) }?))
}
