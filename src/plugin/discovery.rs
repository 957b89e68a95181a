//! Which GPUs a factory offers: every device of the drivers, whether or not ONNX Runtime has found it.

use std::ffi::CStr;
use std::sync::PoisonError;

use ort::sys::{OrtAllocatorType, OrtDeviceMemoryType, OrtHardwareDeviceType, OrtMemoryInfoDeviceType};

use super::abi::{EpDevice, HardwareDevice};
use super::device::Device;
use super::driver::{Names, Vendor};
use super::factory::{Factory, Offered};
use super::host::{Failure, ok};

/// How a device's memory is numbered in ONNX Runtime: `ordinal`, the driver's number (the default), or `listed`, the
/// position in ONNX Runtime's list of all hardware, CPUs included, as AMDGPUExecutionProvider numbers it. Providers
/// share memory and streams only where the numbers agree.
pub const MEMORY_IDS: &str = "SPARK_ORT_MEMORY_IDS";

impl Factory {
    /// Reports every device of the drivers to ONNX Runtime; `found` are those that it has found itself.
    pub(super) fn offer(&self, found: &[*const HardwareDevice], room: usize) -> Result<Vec<*mut EpDevice>, Failure> {
        let listed = match std::env::var(MEMORY_IDS).as_deref() {
            Ok("listed") => true,
            Ok("ordinal" | "") | Err(_) => false,
            Ok(other) => return Err(format!("{MEMORY_IDS} is {other:?}, it may be 'ordinal' or 'listed'").into()),
        };
        let mut devices = Vec::new();
        let mut free: Vec<(usize, *const HardwareDevice)> = found.iter().copied().enumerate().collect();
        for &(vendor, driver) in &self.drivers {
            // A driver without devices must not hide those of the other.
            for ordinal in 0..driver.devices().unwrap_or(0) {
                if devices.len() == room {
                    return Ok(devices);
                }
                let known = self.find(&mut free, vendor, driver.pci(ordinal));
                let memory_id = match known {
                    Some((place, _)) if listed => place as i32,
                    _ => ordinal,
                };
                let device = Device::offer(driver, vendor, ordinal, memory_id);
                devices.push(self.offer_device(device, known.map(|(_, hardware)| hardware))?);
            }
        }
        Ok(devices)
    }

    /// Takes the GPU of `vendor` at `pci` from ONNX Runtime's list, or the first GPU of `vendor` if the list has no
    /// PCI addresses.
    fn find(
        &self,
        free: &mut Vec<(usize, *const HardwareDevice)>,
        vendor: Vendor,
        pci: Option<String>,
    ) -> Option<(usize, *const HardwareDevice)> {
        let api = &self.host.api;
        let candidate = |hardware: *const HardwareDevice| {
            // SAFETY: the device is ONNX Runtime's.
            let (kind, id) = unsafe { ((api.HardwareDevice_Type)(hardware), (api.HardwareDevice_VendorId)(hardware)) };
            let address = || self.metadata(hardware, "pci_bus_id");
            kind == OrtHardwareDeviceType::OrtHardwareDeviceType_GPU as i32
                && id == vendor.id()
                && pci.as_ref().is_none_or(|pci| address().is_none_or(|address| address == *pci))
        };
        let at = free.iter().position(|&(_, hardware)| candidate(hardware))?;
        Some(free.remove(at))
    }

    /// ONNX Runtime's metadata of a device under the key `wanted`, in lower case.
    fn metadata(&self, hardware: *const HardwareDevice, wanted: &str) -> Option<String> {
        let (mut keys, mut values, mut count) = (std::ptr::null(), std::ptr::null(), 0);
        // SAFETY: the device is ONNX Runtime's, the out pointers are valid, and both arrays have `count` C strings that
        // live as long as the device.
        unsafe {
            let pairs = (self.host.api.HardwareDevice_Metadata)(hardware);
            if pairs.is_null() {
                return None;
            }
            (self.host.api.GetKeyValuePairs)(pairs, &mut keys, &mut values, &mut count);
            let at = (0..count).find(|&i| CStr::from_ptr(*keys.add(i)).to_bytes() == wanted.as_bytes())?;
            Some(CStr::from_ptr(*values.add(at)).to_string_lossy().to_lowercase())
        }
    }

    fn offer_device(
        &self,
        device: &'static Device,
        known: Option<*const HardwareDevice>,
    ) -> Result<*mut EpDevice, Failure> {
        let host = self.host;
        let (vendor_name, memory_name, pinned_name) = device.vendor.names();
        let made = known.is_none();
        let hardware = match known {
            Some(hardware) => hardware,
            None => {
                let mut hardware = std::ptr::null_mut();
                let (gpu, id) = (OrtHardwareDeviceType::OrtHardwareDeviceType_GPU, device.ordinal as u32);
                // SAFETY: ONNX Runtime copies the name, and the out pointer is valid.
                ok(unsafe {
                    (host.ep.CreateHardwareDevice)(
                        gpu,
                        device.vendor.id(),
                        id,
                        vendor_name.as_ptr(),
                        std::ptr::null(),
                        &mut hardware,
                    )
                })?;
                hardware.cast_const()
            }
        };
        let info = |name: &CStr, kind| {
            let mut info = std::ptr::null_mut();
            // SAFETY: ONNX Runtime copies the name, and the out pointer is valid.
            ok(unsafe {
                (host.api.CreateMemoryInfo_V2)(
                    name.as_ptr(),
                    OrtMemoryInfoDeviceType::OrtMemoryInfoDeviceType_GPU,
                    device.vendor.id(),
                    device.memory_id,
                    kind,
                    0,
                    OrtAllocatorType::OrtDeviceAllocator,
                    &mut info,
                )
            })
            .map(|()| info)
        };
        let infos = [
            info(memory_name, OrtDeviceMemoryType::OrtDeviceMemoryType_DEFAULT)?,
            info(pinned_name, OrtDeviceMemoryType::OrtDeviceMemoryType_HOST_ACCESSIBLE)?,
        ];
        let mut offered = std::ptr::null_mut();
        // SAFETY: the factory and the objects made above live until the factory is released; the out pointer is valid.
        unsafe {
            let factory = std::ptr::from_ref(self).cast_mut().cast();
            ok((host.ep.CreateEpDevice)(factory, hardware, std::ptr::null(), std::ptr::null(), &mut offered))?;
            for info in infos {
                ok((host.ep.EpDevice_AddAllocatorInfo)(offered, info))?;
            }
        }
        let mut all = self.offered.lock().unwrap_or_else(PoisonError::into_inner);
        all.push(Offered { hardware, made, device, infos });
        Ok(offered)
    }
}
