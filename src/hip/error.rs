//! What can go wrong with a device.

use std::ffi::c_int;

use thiserror::Error;

use super::plan::PlanError;

/// Why kernels cannot run on a device.
#[derive(Debug, Error)]
pub enum HipError {
    /// There is no HIP runtime.
    #[error("no HIP runtime: {0}")]
    NoRuntime(String),
    /// A function of HIP failed.
    #[error("{call} failed: {name} ({code}), {meaning}")]
    Call {
        /// the function, and what it was asked to do
        call: String,
        /// hipError_t
        code: c_int,
        /// such as hipErrorOutOfMemory
        name: String,
        /// HIP's own words
        meaning: String,
    },
    /// A device reports what is not possible.
    #[error("device {ordinal}: {problem}")]
    Device {
        /// number of the device
        ordinal: i32,
        /// what is wrong with it
        problem: String,
    },
    /// There is no code for a device, and none could be made.
    #[error(
        "no kernels for device {ordinal}, {arch}: this library carries {carried}, and compiling them for this device \
         failed: {problem}. Install hipRTC of the same ROCm (its library is libhiprtc.so, in AMD's package hip-runtime-amd), \
         or build libspark_ort.so where hipcc is installed with SPARK_HIP_ARCHS={processor}"
    )]
    NoKernels {
        /// number of the device
        ordinal: i32,
        /// such as gfx90a:sramecc+:xnack-
        arch: String,
        /// such as gfx90a
        processor: String,
        /// processors whose code the library has
        carried: String,
        /// why hipRTC did not help
        problem: String,
    },
    /// The call cannot be planned.
    #[error(transparent)]
    Plan(#[from] PlanError),
}
