//! Errors of a device.

use std::ffi::c_int;

use thiserror::Error;

use super::plan::PlanError;

/// Why kernels cannot run on a device.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum GpuError {
    /// There is no driver.
    #[error("no {runtime}: {problem}")]
    NoRuntime {
        /// what is missing, such as HIP runtime
        runtime: &'static str,
        /// why it could not be opened
        problem: String,
    },
    /// A function of the driver failed.
    #[error("{call} failed: {name} ({code}), {meaning}")]
    Call {
        /// the function, and what it was asked to do
        call: String,
        /// hipError_t or CUresult
        code: c_int,
        /// such as hipErrorOutOfMemory
        name: String,
        /// the driver's own words
        meaning: String,
    },
    /// A property of a device that is not supported or not possible.
    #[error("device {ordinal}: {problem}")]
    Device {
        /// number of the device
        ordinal: i32,
        /// what is wrong with it
        problem: String,
    },
    /// There is no code for a device, and none could be compiled.
    #[error(
        "no kernels for device {ordinal}, {arch}: this library carries {carried}, and compiling them for this device \
         failed: {problem}. {advice}"
    )]
    NoKernels {
        /// number of the device
        ordinal: i32,
        /// such as gfx90a:sramecc+:xnack-
        arch: String,
        /// the code embedded in the library
        carried: String,
        /// why the compiler could not help
        problem: String,
        /// what to install
        advice: String,
    },
    /// The stream of a call records a graph.
    #[error(
        "the stream is being captured into a graph, but the operators' launches hold the lengths of this call, and a \
         replayed graph would go on with them: switch graph capture off (enable_cuda_graph=0)"
    )]
    Capturing,
    /// The call cannot be planned.
    #[error(transparent)]
    Plan(#[from] PlanError),
}
