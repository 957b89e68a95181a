//! NVIDIA GPUs, through the CUDA driver.

mod code;
mod driver;

pub(crate) use driver::Cuda;
