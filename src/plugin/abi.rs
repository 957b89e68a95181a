//! The structures of `onnxruntime_ep_c_api.h` that a provider fills, written by hand: the `ort` crate has none of
//! them.
//!
//! ONNX Runtime only ever appends to them. All state that they were written for version 24: a later ONNX Runtime then
//! calls nothing that was added later, and functions of version 24 that are not used here stay null.

#![allow(non_snake_case, missing_docs)]

use std::ffi::{c_char, c_int, c_void};
use std::mem::{offset_of, size_of};

use ort::sys::{OrtAllocatorType, OrtDeviceMemoryType, OrtHardwareDeviceType, OrtMemType, OrtMemoryInfoDeviceType};

/// The version of these structures, and the oldest ONNX Runtime that supports them: 1.24.
pub const VERSION: u32 = 24;

/// An ONNX Runtime status, null for success.
pub type Status = *mut ort::sys::OrtStatus;

macro_rules! opaque {
    ($($name:ident)*) => {
        $(
            /// Opaque types of ONNX Runtime.
            #[repr(C)]
            #[derive(Debug)]
            pub struct $name {
                _private: [u8; 0],
            }
        )*
    };
}

opaque! {
    DataType EpDevice Graph GraphSupportInfo HardwareDevice KernelContext KernelDef KernelDefBuilder KernelInfo
    KernelRegistry KeyValuePairs Logger MemoryDevice MemoryInfo Node RunOptions SessionOptions SyncStream TensorInfo
    Value
}

/// A function that this provider does not implement.
pub type Absent = Option<unsafe extern "system" fn()>;

/// OrtAllocator.
#[repr(C)]
#[derive(Debug)]
pub struct Allocator {
    pub version: u32,
    pub Alloc: unsafe extern "system" fn(*mut Allocator, usize) -> *mut c_void,
    pub Free: unsafe extern "system" fn(*mut Allocator, *mut c_void),
    pub Info: unsafe extern "system" fn(*const Allocator) -> *const MemoryInfo,
    pub Reserve: unsafe extern "system" fn(*mut Allocator, usize) -> *mut c_void,
    pub GetStats: Absent,
    pub AllocOnStream: unsafe extern "system" fn(*mut Allocator, usize, *mut SyncStream) -> *mut c_void,
}

/// OrtDataTransferImpl.
#[repr(C)]
#[derive(Debug)]
pub struct DataTransfer {
    pub version: u32,
    pub Release: unsafe extern "system" fn(*mut DataTransfer),
    pub CanCopy: unsafe extern "system" fn(*const DataTransfer, *const MemoryDevice, *const MemoryDevice) -> bool,
    pub CopyTensors: unsafe extern "system" fn(
        *mut DataTransfer,
        *const *const Value,
        *const *mut Value,
        *const *mut SyncStream,
        usize,
    ) -> Status,
}

/// OrtSyncNotificationImpl.
#[repr(C)]
#[derive(Debug)]
pub struct Notification {
    pub version: u32,
    pub Release: unsafe extern "system" fn(*mut Notification),
    pub Activate: unsafe extern "system" fn(*mut Notification) -> Status,
    pub WaitOnDevice: unsafe extern "system" fn(*mut Notification, *mut SyncStream) -> Status,
    pub WaitOnHost: unsafe extern "system" fn(*mut Notification) -> Status,
}

/// OrtSyncStreamImpl.
#[repr(C)]
#[derive(Debug)]
pub struct Stream {
    pub version: u32,
    pub Release: unsafe extern "system" fn(*mut Stream),
    pub GetHandle: unsafe extern "system" fn(*mut Stream) -> *mut c_void,
    pub CreateNotification: unsafe extern "system" fn(*mut Stream, *mut *mut Notification) -> Status,
    pub Flush: unsafe extern "system" fn(*mut Stream) -> Status,
    pub OnSessionRunEnd: unsafe extern "system" fn(*mut Stream) -> Status,
}

/// OrtKernelImpl.
#[repr(C)]
#[derive(Debug)]
pub struct Kernel {
    pub version: u32,
    pub flags: u32,
    pub Compute: unsafe extern "system" fn(*mut Kernel, *mut KernelContext) -> Status,
    pub Release: unsafe extern "system" fn(*mut Kernel),
    pub PrePackWeight: Absent,
    pub SetSharedPrePackedWeight: Absent,
}

/// OrtKernelCreateFunc.
pub type CreateKernel = unsafe extern "system" fn(*mut c_void, *const KernelInfo, *mut *mut Kernel) -> Status;

/// OrtEp.
#[repr(C)]
#[derive(Debug)]
pub struct Ep {
    pub version: u32,
    pub GetName: unsafe extern "system" fn(*const Ep) -> *const c_char,
    pub GetCapability: unsafe extern "system" fn(*mut Ep, *const Graph, *mut GraphSupportInfo) -> Status,
    pub Compile: Absent,
    pub ReleaseNodeComputeInfos: Absent,
    pub GetPreferredDataLayout: Absent,
    pub ShouldConvertDataLayoutForOp: Absent,
    pub SetDynamicOptions: Absent,
    pub OnRunStart: Absent,
    pub OnRunEnd: unsafe extern "system" fn(*mut Ep, *const RunOptions, bool) -> Status,
    pub CreateAllocator: Absent,
    pub CreateSyncStreamForDevice: unsafe extern "system" fn(*mut Ep, *const MemoryDevice, *mut *mut Stream) -> Status,
    pub GetCompiledModelCompatibilityInfo: Absent,
    pub GetKernelRegistry: unsafe extern "system" fn(*mut Ep, *mut *const KernelRegistry) -> Status,
    /// Absent: calls may run concurrently.
    pub IsConcurrentRunSupported: Absent,
}

/// OrtEpFactory.
#[repr(C)]
#[derive(Debug)]
pub struct Factory {
    pub version: u32,
    pub GetName: unsafe extern "system" fn(*const Factory) -> *const c_char,
    pub GetVendor: unsafe extern "system" fn(*const Factory) -> *const c_char,
    pub GetSupportedDevices: unsafe extern "system" fn(
        *mut Factory,
        *const *const HardwareDevice,
        usize,
        *mut *mut EpDevice,
        usize,
        *mut usize,
    ) -> Status,
    pub CreateEp: unsafe extern "system" fn(
        *mut Factory,
        *const *const HardwareDevice,
        *const *const KeyValuePairs,
        usize,
        *const SessionOptions,
        *const Logger,
        *mut *mut Ep,
    ) -> Status,
    pub ReleaseEp: unsafe extern "system" fn(*mut Factory, *mut Ep),
    pub GetVendorId: unsafe extern "system" fn(*const Factory) -> u32,
    pub GetVersion: unsafe extern "system" fn(*const Factory) -> *const c_char,
    pub ValidateCompiledModelCompatibilityInfo: Absent,
    pub CreateAllocator:
        unsafe extern "system" fn(*mut Factory, *const MemoryInfo, *const KeyValuePairs, *mut *mut Allocator) -> Status,
    pub ReleaseAllocator: unsafe extern "system" fn(*mut Factory, *mut Allocator),
    pub CreateDataTransfer: unsafe extern "system" fn(*mut Factory, *mut *mut DataTransfer) -> Status,
    pub IsStreamAware: unsafe extern "system" fn(*const Factory) -> bool,
    pub CreateSyncStreamForDevice:
        unsafe extern "system" fn(*mut Factory, *const MemoryDevice, *const KeyValuePairs, *mut *mut Stream) -> Status,
    pub GetHardwareDeviceIncompatibilityDetails: Absent,
    pub CreateExternalResourceImporterForDevice: Absent,
    pub GetNumCustomOpDomains: Absent,
    pub GetCustomOpDomains: Absent,
    /// Later versions' functions, which are not called.
    pub later: [Absent; 4],
}

// Every member after the version is a pointer, and the version takes the space of one.
const _: () = {
    assert!(size_of::<Allocator>() == 7 * 8 && offset_of!(Allocator, AllocOnStream) == 6 * 8);
    assert!(size_of::<DataTransfer>() == 4 * 8 && offset_of!(DataTransfer, CopyTensors) == 3 * 8);
    assert!(size_of::<Notification>() == 5 * 8 && offset_of!(Notification, WaitOnHost) == 4 * 8);
    assert!(size_of::<Stream>() == 6 * 8 && offset_of!(Stream, OnSessionRunEnd) == 5 * 8);
    assert!(offset_of!(Kernel, flags) == 4 && offset_of!(Kernel, Compute) == 8 && size_of::<Kernel>() == 5 * 8);
    assert!(offset_of!(Ep, OnRunEnd) == 9 * 8 && offset_of!(Ep, GetKernelRegistry) == 13 * 8);
    assert!(offset_of!(Factory, GetVendorId) == 6 * 8 && offset_of!(Factory, CreateSyncStreamForDevice) == 13 * 8);
};

macro_rules! table {
    ($(#[$doc:meta])* $table:ident { $($slot:literal $name:ident: fn($($argument:ty),*) $(-> $result:ty)?;)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug)]
        pub struct $table {
            $(pub $name: unsafe extern "system" fn($($argument),*) $(-> $result)?,)*
        }

        impl $table {
            /// The slots and names of the functions read from ONNX Runtime's table.
            pub const SLOTS: &'static [(usize, &'static str)] = &[$(($slot, stringify!($name))),*];

            /// # Safety
            /// `table` is ONNX Runtime's, of version [`VERSION`] or later.
            pub unsafe fn read(table: *const c_void) -> Self {
                let slots: *const *const c_void = table.cast();
                // SAFETY: the table holds function pointers, in an order that never changes; a function that exists in
                // this version is never null and has this signature.
                unsafe {
                    Self {
                        $($name: std::mem::transmute::<
                            *const c_void,
                            unsafe extern "system" fn($($argument),*) $(-> $result)?,
                        >(*slots.add($slot)),)*
                    }
                }
            }
        }
    };
}

table! {
    /// The functions of OrtApi that are used.
    Api {
        0 CreateStatus: fn(c_int, *const c_char) -> Status;
        51 GetTensorMutableData: fn(*mut Value, *mut *mut c_void) -> Status;
        61 GetDimensionsCount: fn(*const TensorInfo, *mut usize) -> Status;
        62 GetDimensions: fn(*const TensorInfo, *mut i64, usize) -> Status;
        65 GetTensorTypeAndShape: fn(*const Value, *mut *mut TensorInfo) -> Status;
        72 MemoryInfoGetId: fn(*const MemoryInfo, *mut c_int) -> Status;
        90 KernelContext_GetInput: fn(*const KernelContext, usize, *mut *const Value) -> Status;
        91 KernelContext_GetOutput: fn(*mut KernelContext, usize, *const i64, usize, *mut *mut Value) -> Status;
        94 ReleaseMemoryInfo: fn(*mut MemoryInfo);
        99 ReleaseTensorTypeAndShapeInfo: fn(*mut TensorInfo);
        193 KernelContext_GetGPUComputeStream: fn(*const KernelContext, *mut *mut c_void) -> Status;
        298 GetKeyValuePairs:
            fn(*const KeyValuePairs, *mut *const *const c_char, *mut *const *const c_char, *mut usize);
        307 HardwareDevice_Type: fn(*const HardwareDevice) -> c_int;
        308 HardwareDevice_VendorId: fn(*const HardwareDevice) -> u32;
        311 HardwareDevice_Metadata: fn(*const HardwareDevice) -> *const KeyValuePairs;
        317 GetEpApi: fn() -> *const c_void;
        318 GetTensorSizeInBytes: fn(*const Value, *mut usize) -> Status;
        320 CreateMemoryInfo_V2: fn(
            *const c_char,
            OrtMemoryInfoDeviceType,
            u32,
            i32,
            OrtDeviceMemoryType,
            usize,
            OrtAllocatorType,
            *mut *mut MemoryInfo
        ) -> Status;
        321 MemoryInfoGetDeviceMemType: fn(*const MemoryInfo) -> c_int;
        322 MemoryInfoGetVendorId: fn(*const MemoryInfo) -> u32;
        344 Graph_GetNumNodes: fn(*const Graph, *mut usize) -> Status;
        345 Graph_GetNodes: fn(*const Graph, *mut *const Node, usize) -> Status;
        351 Node_GetDomain: fn(*const Node, *mut *const c_char) -> Status;
        378 GetTensorData: fn(*const Value, *mut *const c_void) -> Status;
        384 SyncStream_GetHandle: fn(*mut SyncStream) -> *mut c_void;
    }
}

table! {
    /// The functions of OrtEpApi that are used.
    EpApi {
        0 CreateEpDevice: fn(
            *mut Factory,
            *const HardwareDevice,
            *const KeyValuePairs,
            *const KeyValuePairs,
            *mut *mut EpDevice
        ) -> Status;
        1 ReleaseEpDevice: fn(*mut EpDevice);
        3 EpGraphSupportInfo_AddSingleNode: fn(*mut GraphSupportInfo, *const Node) -> Status;
        5 EpDevice_AddAllocatorInfo: fn(*mut EpDevice, *const MemoryInfo) -> Status;
        7 Value_GetMemoryDevice: fn(*const Value) -> *const MemoryDevice;
        9 MemoryDevice_GetDeviceType: fn(*const MemoryDevice) -> c_int;
        10 MemoryDevice_GetMemoryType: fn(*const MemoryDevice) -> c_int;
        11 MemoryDevice_GetVendorId: fn(*const MemoryDevice) -> u32;
        12 MemoryDevice_GetDeviceId: fn(*const MemoryDevice) -> u32;
        16 CreateHardwareDevice: fn(
            OrtHardwareDeviceType,
            u32,
            u32,
            *const c_char,
            *const KeyValuePairs,
            *mut *mut HardwareDevice
        ) -> Status;
        17 ReleaseHardwareDevice: fn(*mut HardwareDevice);
        18 CreateKernelRegistry: fn(*mut *mut KernelRegistry) -> Status;
        19 ReleaseKernelRegistry: fn(*mut KernelRegistry);
        20 KernelRegistry_AddKernel: fn(*mut KernelRegistry, *const KernelDef, CreateKernel, *mut c_void) -> Status;
        21 CreateKernelDefBuilder: fn(*mut *mut KernelDefBuilder) -> Status;
        22 ReleaseKernelDefBuilder: fn(*mut KernelDefBuilder);
        23 KernelDefBuilder_SetOperatorType: fn(*mut KernelDefBuilder, *const c_char) -> Status;
        24 KernelDefBuilder_SetDomain: fn(*mut KernelDefBuilder, *const c_char) -> Status;
        25 KernelDefBuilder_SetSinceVersion: fn(*mut KernelDefBuilder, c_int, c_int) -> Status;
        26 KernelDefBuilder_SetExecutionProvider: fn(*mut KernelDefBuilder, *const c_char) -> Status;
        27 KernelDefBuilder_SetInputMemType: fn(*mut KernelDefBuilder, usize, OrtMemType) -> Status;
        28 KernelDefBuilder_SetOutputMemType: fn(*mut KernelDefBuilder, usize, OrtMemType) -> Status;
        29 KernelDefBuilder_AddTypeConstraint: fn(
            *mut KernelDefBuilder,
            *const c_char,
            *const *const DataType,
            usize
        ) -> Status;
        32 KernelDefBuilder_Build: fn(*mut KernelDefBuilder, *mut *mut KernelDef) -> Status;
        33 ReleaseKernelDef: fn(*mut KernelDef);
        40 GetTensorDataType: fn(c_int, *mut *const DataType) -> Status;
        41 EpGraphSupportInfo_LookUpKernel: fn(*mut GraphSupportInfo, *const Node, *mut *const KernelDef) -> Status;
    }
}
