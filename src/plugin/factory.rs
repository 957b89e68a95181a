//! OrtEpFactory: lists the devices, and creates what sessions on them need.

use std::ffi::{CStr, c_char, c_void};
use std::sync::{Mutex, PoisonError};

use ort::sys::OrtDeviceMemoryType;

use super::abi::{
    self, EpDevice, HardwareDevice, KernelRegistry, KeyValuePairs, Logger, MemoryDevice, MemoryInfo, SessionOptions,
    Status, VERSION,
};
use super::allocator::Allocator;
use super::device::Device;
use super::driver::{Driver, Names, Vendor};
use super::ep::Ep;
use super::host::{Failure, Host};
use super::stream::{self, Streams};
use super::transfer::Transfer;
use super::{NAME, memcpy};

/// The factory of a registration.
#[repr(C)]
pub struct Factory {
    abi: abi::Factory,
    pub(super) host: &'static Host,
    pub(super) drivers: Vec<(Vendor, &'static dyn Driver)>,
    registry: *mut KernelRegistry,
    pub(super) offered: Mutex<Vec<Offered>>,
}

/// A device that was reported to ONNX Runtime.
pub(super) struct Offered {
    pub(super) hardware: *const HardwareDevice,
    /// Whether `hardware` was created here, because ONNX Runtime had not found it.
    pub(super) made: bool,
    pub(super) device: &'static Device,
    /// For device memory and for pinned memory.
    pub(super) infos: [*mut MemoryInfo; 2],
}

impl Factory {
    /// A factory, if there is a driver.
    ///
    /// # Errors
    /// If this machine has neither HIP nor the CUDA driver.
    pub fn create(host: &'static Host) -> Result<*mut abi::Factory, Failure> {
        let opened = Vendor::ALL.map(|vendor| (vendor, vendor.driver()));
        if let [(_, Err(amd)), (_, Err(nvidia))] = &opened {
            return Err(format!("no GPU driver on this machine. {amd}. The CUDA driver: {nvidia}").into());
        }
        keep_loaded();
        let drivers = opened.into_iter().filter_map(|(vendor, driver)| Some((vendor, driver.ok()?))).collect();
        let registry = memcpy::registry(host)?;
        let abi = abi::Factory {
            version: VERSION,
            GetName: name,
            GetVendor: vendor,
            GetSupportedDevices: supported_devices,
            CreateEp: create_ep,
            ReleaseEp: release_ep,
            GetVendorId: vendor_id,
            GetVersion: version,
            ValidateCompiledModelCompatibilityInfo: None,
            CreateAllocator: create_allocator,
            ReleaseAllocator: release_allocator,
            CreateDataTransfer: create_transfer,
            IsStreamAware: is_stream_aware,
            CreateSyncStreamForDevice: create_stream,
            GetHardwareDeviceIncompatibilityDetails: None,
            CreateExternalResourceImporterForDevice: None,
            GetNumCustomOpDomains: None,
            GetCustomOpDomains: None,
            later: [None; 4],
        };
        Ok(Box::into_raw(Box::new(Self { abi, host, drivers, registry, offered: Mutex::default() })).cast())
    }

    /// Releases a factory and all free memory of its devices.
    ///
    /// # Safety
    /// `this` is of [`Factory::create`], and nothing made by it is left.
    pub unsafe fn release(this: *mut abi::Factory) {
        // SAFETY: by this function's contract.
        let factory = unsafe { Box::from_raw(this.cast::<Self>()) };
        let host = factory.host;
        for offered in factory.offered.into_inner().unwrap_or_else(PoisonError::into_inner) {
            offered.device.memory.trim();
            offered.device.pinned.trim();
            // SAFETY: each was made by this factory and is released once.
            unsafe {
                offered.infos.into_iter().for_each(|info| (host.api.ReleaseMemoryInfo)(info));
                if offered.made {
                    (host.ep.ReleaseHardwareDevice)(offered.hardware.cast_mut());
                }
            }
        }
        // SAFETY: as above.
        unsafe { (host.ep.ReleaseKernelRegistry)(factory.registry) };
    }

    /// # Safety
    /// `this` is of [`Factory::create`] and not yet released.
    unsafe fn of<'a>(this: *const abi::Factory) -> &'a Self {
        // SAFETY: by this function's contract; `abi` is the first member.
        unsafe { &*this.cast::<Self>() }
    }

    fn device_of(&self, hardware: *const HardwareDevice) -> Option<&'static Device> {
        let offered = self.offered.lock().unwrap_or_else(PoisonError::into_inner);
        offered.iter().find(|offered| offered.hardware == hardware).map(|offered| offered.device)
    }
}

// SAFETY: ONNX Runtime allows any thread to use these objects, and the list is locked.
unsafe impl Send for Offered {}

/// Keeps this file loaded until the process ends: devices, kernels and the driver's state persist, even if the library
/// is unregistered and registered again.
fn keep_loaded() {
    // SAFETY: the address is in this file, whose name the loader knows; opening it a second time runs no code.
    unsafe {
        let mut found: libc::Dl_info = std::mem::zeroed();
        let address: *const c_void = (NAME as *const CStr).cast();
        if libc::dladdr(address, &mut found) != 0 && !found.dli_fname.is_null() {
            libc::dlopen(found.dli_fname, libc::RTLD_NOW | libc::RTLD_NOLOAD | libc::RTLD_NODELETE);
        }
    }
}

/// # Safety
/// Only ONNX Runtime may call this, with pointers that it was given.
unsafe extern "system" fn name(_this: *const abi::Factory) -> *const c_char {
    NAME.as_ptr()
}

/// # Safety
/// Only ONNX Runtime may call this, with pointers that it was given.
unsafe extern "system" fn vendor(_this: *const abi::Factory) -> *const c_char {
    c"SparK-ORT".as_ptr()
}

/// The vendor of the devices, if they all have the same one.
///
/// # Safety
/// Only ONNX Runtime may call this, with pointers that it was given.
unsafe extern "system" fn vendor_id(this: *const abi::Factory) -> u32 {
    // SAFETY: ONNX Runtime passes pointers that it was given.
    let factory = unsafe { Factory::of(this) };
    let has_devices = |driver: &dyn Driver| driver.devices().is_ok_and(|count| count > 0);
    let mut vendors = factory.drivers.iter().filter(|(_, driver)| has_devices(*driver));
    vendors.next().map_or(0, |(vendor, _)| vendor.id())
}

/// # Safety
/// Only ONNX Runtime may call this, with pointers that it was given.
unsafe extern "system" fn version(_this: *const abi::Factory) -> *const c_char {
    concat!(env!("CARGO_PKG_VERSION"), "\0").as_ptr().cast()
}

/// # Safety
/// Only ONNX Runtime may call this, with pointers that it was given.
unsafe extern "system" fn supported_devices(
    this: *mut abi::Factory,
    found: *const *const HardwareDevice,
    found_count: usize,
    offered: *mut *mut EpDevice,
    room: usize,
    count: *mut usize,
) -> Status {
    // SAFETY: ONNX Runtime passes pointers that it was given.
    let factory = unsafe { Factory::of(this) };
    factory.host.answer(|| {
        // SAFETY: the array has as many entries as ONNX Runtime states, and is null only if it has none.
        let found = if found_count == 0 { &[] } else { unsafe { std::slice::from_raw_parts(found, found_count) } };
        let devices = factory.offer(found, room)?;
        // SAFETY: there is room for `room` devices, and no more are offered.
        unsafe {
            devices.iter().enumerate().for_each(|(i, &device)| *offered.add(i) = device);
            *count = devices.len();
        }
        Ok(())
    })
}

/// # Safety
/// Only ONNX Runtime may call this, with pointers that it was given.
unsafe extern "system" fn create_ep(
    this: *mut abi::Factory,
    hardware: *const *const HardwareDevice,
    _metadata: *const *const KeyValuePairs,
    count: usize,
    _options: *const SessionOptions,
    _logger: *const Logger,
    ep: *mut *mut abi::Ep,
) -> Status {
    // SAFETY: ONNX Runtime passes pointers that it was given.
    let factory = unsafe { Factory::of(this) };
    factory.host.answer(|| {
        if count != 1 {
            return Err(format!("a session runs on one device, and {count} were given").into());
        }
        // SAFETY: the array has one entry, and the out pointer is valid.
        unsafe {
            let device = factory.device_of(*hardware).ok_or_else(|| "a device that was not offered".to_owned())?;
            *ep = Ep::create(factory.host, device, factory.registry);
        }
        Ok(())
    })
}

/// # Safety
/// Only ONNX Runtime may call this, with pointers that it was given.
unsafe extern "system" fn release_ep(_this: *mut abi::Factory, ep: *mut abi::Ep) {
    // SAFETY: ONNX Runtime passes what `create_ep` made, for the last time.
    unsafe { Ep::release(ep) };
}

/// # Safety
/// Only ONNX Runtime may call this, with pointers that it was given.
unsafe extern "system" fn create_allocator(
    this: *mut abi::Factory,
    info: *const MemoryInfo,
    _options: *const KeyValuePairs,
    allocator: *mut *mut abi::Allocator,
) -> Status {
    // SAFETY: ONNX Runtime passes pointers that it was given.
    let host = unsafe { Factory::of(this) }.host;
    host.answer(|| {
        // SAFETY: the memory info is one of this factory's, which ONNX Runtime passes back, and the out pointer is
        // valid.
        unsafe {
            let (vendor, id) = host.memory_of(info.cast())?;
            let device = Device::of(vendor, id).ok_or_else(|| format!("an allocator for unknown memory {id}"))?;
            let pinned = OrtDeviceMemoryType::OrtDeviceMemoryType_HOST_ACCESSIBLE as i32;
            let pool = match (host.api.MemoryInfoGetDeviceMemType)(info) == pinned {
                true => &device.pinned,
                false => &device.memory,
            };
            *allocator = Allocator::create(host, pool, info);
        }
        Ok(())
    })
}

/// # Safety
/// Only ONNX Runtime may call this, with pointers that it was given.
unsafe extern "system" fn release_allocator(_this: *mut abi::Factory, allocator: *mut abi::Allocator) {
    // SAFETY: ONNX Runtime passes what `create_allocator` made, for the last time.
    unsafe { Allocator::release(allocator) };
}

/// # Safety
/// Only ONNX Runtime may call this, with pointers that it was given.
unsafe extern "system" fn create_transfer(this: *mut abi::Factory, transfer: *mut *mut abi::DataTransfer) -> Status {
    // SAFETY: ONNX Runtime passes pointers that it was given, and the out pointer is valid.
    unsafe { *transfer = Transfer::create(Factory::of(this).host) };
    std::ptr::null_mut()
}

/// # Safety
/// Only ONNX Runtime may call this, with pointers that it was given.
unsafe extern "system" fn is_stream_aware(_this: *const abi::Factory) -> bool {
    true
}

/// Creates a stream outside any session.
///
/// # Safety
/// Only ONNX Runtime may call this, with pointers that it was given.
unsafe extern "system" fn create_stream(
    this: *mut abi::Factory,
    memory: *const MemoryDevice,
    _options: *const KeyValuePairs,
    stream: *mut *mut abi::Stream,
) -> Status {
    // SAFETY: ONNX Runtime passes pointers that it was given.
    let host = unsafe { Factory::of(this) }.host;
    host.answer(|| {
        // SAFETY: the memory device is ONNX Runtime's, and the out pointer is valid.
        unsafe {
            let (vendor, id) = ((host.ep.MemoryDevice_GetVendorId)(memory), (host.ep.MemoryDevice_GetDeviceId)(memory));
            let device = i32::try_from(id).ok().and_then(|id| Device::of(vendor, id));
            let device = device.ok_or_else(|| format!("a stream for unknown memory {id}"))?;
            *stream = stream::create(host, device, &Streams::default())?;
        }
        Ok(())
    })
}
