//! The kernels of `ops/` on a GPU: their arguments, their launches, and the drivers that run them.
//!
//! `plan` decides what a call launches and touches no device. `device` keeps the kernels loaded on a device, through
//! the `Runtime` of its vendor: `hip` or `cuda`. A driver is opened when a session first needs one of its devices; a
//! host without one never gets that far. `rtc` compiles the kernels where this library has no embedded code for a
//! device, and `code_cache` keeps the result.

mod code_cache;
mod cuda;
mod device;
mod error;
mod hip;
pub mod limits;
pub mod params;
pub mod plan;
mod rtc;
mod runtime;
mod sources;

pub(crate) use cuda::Cuda;
pub use device::Device;
pub use error::GpuError;
pub use hip::Hip;
pub(crate) use runtime::functions;
pub use runtime::{Handle, Properties, Vendor};
