//! The kernels of `ops/` on a GPU: what they are told, how they are launched, and the HIP runtime that launches them.
//!
//! HIP is opened when a session with ONNX Runtime's ROCm execution provider first needs it. A host without it never gets
//! here.

mod cache;
mod code;
mod compile;
mod device;
mod error;
mod library;
pub mod params;
pub mod plan;

pub use code::carried_names;
pub use device::Device;
pub use error::HipError;
pub use library::{Handle, Hip, Properties};
