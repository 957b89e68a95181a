//! AMD GPUs, through HIP.

mod arch;
mod code;
mod driver;

pub use driver::Hip;
