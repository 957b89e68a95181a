//! The kernels of `ops/` on a GPU: what they are told and how they are launched.

pub mod params;
pub mod plan;
