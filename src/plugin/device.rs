//! The GPUs that the provider offers, and their state, which lasts as long as the process.

use std::ffi::c_void;
use std::sync::{Mutex, PoisonError};

use super::driver::{Driver, Handle, Names, Vendor};
use super::host::{Failure, Host};
use super::pool::Pool;

/// A GPU.
pub struct Device {
    pub(super) driver: &'static dyn Driver,
    pub(super) vendor: Vendor,
    pub(super) ordinal: i32,
    /// ONNX Runtime's id of its memory.
    pub(super) memory_id: i32,
    /// Device memory.
    pub(super) memory: Pool,
    /// Host memory that the device can copy from and to.
    pub(super) pinned: Pool,
}

static DEVICES: Mutex<Vec<&'static Device>> = Mutex::new(Vec::new());

impl Device {
    /// The device, created once: a later registration finds it again.
    pub(super) fn offer(driver: &'static dyn Driver, vendor: Vendor, ordinal: i32, memory_id: i32) -> &'static Self {
        let mut devices = DEVICES.lock().unwrap_or_else(PoisonError::into_inner);
        let known = devices.iter().position(|d| (d.vendor, d.memory_id) == (vendor, memory_id));
        if let Some(known) = known.filter(|&known| devices[known].ordinal == ordinal) {
            return devices[known];
        }
        let device: &'static Self = Box::leak(Box::new(Self {
            driver,
            vendor,
            ordinal,
            memory_id,
            memory: Pool::new(driver, ordinal, false),
            pinned: Pool::new(driver, ordinal, true),
        }));
        match known {
            Some(known) => devices[known] = device,
            None => devices.push(device),
        }
        device
    }

    /// The device whose memory has these ids in ONNX Runtime.
    pub(super) fn of(vendor_id: u32, memory_id: i32) -> Option<&'static Self> {
        let devices = DEVICES.lock().unwrap_or_else(PoisonError::into_inner);
        devices.iter().copied().find(|d| d.vendor.id() == vendor_id && d.memory_id == memory_id)
    }

    /// The device of an OrtMemoryInfo.
    ///
    /// # Safety
    /// `info` belongs to the ONNX Runtime that registered the library as a plugin.
    ///
    /// # Errors
    /// If the library is not a plugin in this process, or the memory belongs to no device that it offers.
    pub unsafe fn of_memory(info: *const c_void) -> Result<&'static Self, String> {
        let host = Host::get().ok_or("the library is not registered as an execution provider library")?;
        // SAFETY: by this function's contract.
        let (vendor, id) = unsafe { host.memory_of(info) }.map_err(|e| match e {
            Failure::Message(message) => message,
            Failure::Status(_) => "MemoryInfoGetId failed".into(),
        })?;
        Self::of(vendor, id).ok_or_else(|| format!("memory {id} of vendor {vendor:#x} is of no device that is offered"))
    }

    /// The manufacturer.
    pub fn vendor(&self) -> Vendor {
        self.vendor
    }

    /// The driver's number for it.
    pub fn ordinal(&self) -> i32 {
        self.ordinal
    }

    /// Runs `work`, which queues launches on `stream`, with a workspace of `bytes` bytes for them. If it is `optional`,
    /// nothing is given back to the driver to get it.
    ///
    /// # Errors
    /// If there is no memory.
    pub fn with_workspace<R>(
        &self,
        stream: Handle,
        bytes: usize,
        optional: bool,
        work: impl FnOnce(*mut c_void) -> R,
    ) -> Result<R, String> {
        self.memory.with_workspace(stream, bytes, optional, work)
    }

    /// Called when a stream has run all its work and is about to be destroyed.
    pub(super) fn retire(&self, stream: Handle) {
        self.memory.retire(stream);
        self.pinned.retire(stream);
    }
}
