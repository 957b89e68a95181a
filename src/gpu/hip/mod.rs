//! AMD GPUs, by HIP.

mod arch;
mod code;
mod driver;

pub use driver::Hip;
