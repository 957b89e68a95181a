//! The environment that figures depend on, besides the program.

use std::fs;

use serde::Serialize;
use spark_ort::runtime::Runtime;

/// Where and with what something was measured.
#[derive(Serialize)]
pub struct Machine {
    pub version: &'static str,
    pub onnxruntime: String,
    /// Name of the processor, if the system reports it.
    pub processor: Option<String>,
    /// Number of threads that can run at a time.
    pub cores: usize,
}

impl Machine {
    pub fn new(runtime: &Runtime) -> Self {
        Self {
            version: env!("CARGO_PKG_VERSION"),
            onnxruntime: runtime.version().into(),
            processor: processor(),
            cores: std::thread::available_parallelism().map_or(1, |n| n.get()),
        }
    }

    /// One line for people.
    pub fn line(&self) -> String {
        let Self { version, onnxruntime, processor, cores } = self;
        let processor = processor.as_deref().unwrap_or("unknown processor");
        format!("spark-ort {version}, ONNX Runtime {onnxruntime}, {processor} with {cores} cores")
    }
}

/// Name of the processor, if the system reports it.
pub fn processor() -> Option<String> {
    let text = fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().into())
}

/// Bytes of the processor's largest cache, if the system reports it.
pub fn largest_cache() -> Option<usize> {
    let folders = fs::read_dir("/sys/devices/system/cpu/cpu0/cache").ok()?.flatten();
    let sizes = folders.filter_map(|folder| fs::read_to_string(folder.path().join("size")).ok());
    sizes.filter_map(|size| Some(size.trim().strip_suffix('K')?.parse::<usize>().ok()? * 1024)).max()
}
