//! NVIDIA GPUs, by the CUDA driver.

mod code;
mod driver;

pub(super) use driver::Cuda;
