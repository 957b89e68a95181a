//! Which execution provider runs the operators on this machine, and why another does not. `spark_ort.register` of the
//! Python package chooses in the same order.

use serde::Serialize;

/// A provider that has the operators.
#[derive(Serialize)]
pub struct Way {
    pub provider: &'static str,
    /// Why it cannot run them here.
    pub problem: Option<String>,
}

/// The providers in order of preference: the first without a problem is the one to take. A provider with a GPU that
/// ONNX Runtime has itself may run the whole model, ours the operators alone. `amd` and `nvidia`: why there is no GPU.
pub fn ways(version: &str, built_in: &[String], amd: Result<(), String>, nvidia: Result<(), String>) -> Vec<Way> {
    let has = |provider: &str| built_in.iter().any(|name| name == provider);
    let of_onnxruntime = |provider: &'static str, package: &str, gpu: &Result<(), String>, vendor: &str| Way {
        provider,
        problem: match (has(provider), gpu) {
            (false, _) => Some(format!("this ONNX Runtime does not have it; {package} does")),
            (true, Err(why)) => Some(format!("no {vendor} GPU: {why}")),
            (true, Ok(())) => None,
        },
    };
    let minor = version.split('.').nth(1).and_then(|minor| minor.parse::<u32>().ok());
    let ours = match (minor, &amd, &nvidia) {
        (Some(minor), ..) if minor < spark_ort::plugin::abi::VERSION => {
            Some(format!("ONNX Runtime 1.{} or later loads it, this is {version}", spark_ort::plugin::abi::VERSION))
        }
        (_, Err(hip), Err(cuda)) => Some(format!("no GPU; HIP: {hip}; CUDA: {cuda}")),
        _ => None,
    };
    vec![
        of_onnxruntime("CUDAExecutionProvider", "the package onnxruntime-gpu", &nvidia, "NVIDIA"),
        of_onnxruntime("ROCMExecutionProvider", "onnxruntime-rocm, up to 1.22,", &amd, "AMD"),
        Way { provider: spark_ort::plugin::name(), problem: ours },
        Way { provider: "CPUExecutionProvider", problem: None },
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The provider taken, and the others' problems.
    fn taken(version: &str, built_in: &[&str], amd: bool, nvidia: bool) -> (&'static str, Vec<String>) {
        let gpu = |there: bool| if there { Ok(()) } else { Err("none".to_string()) };
        let built_in: Vec<_> = built_in.iter().map(|name| name.to_string()).collect();
        let ways = ways(version, &built_in, gpu(amd), gpu(nvidia));
        let first = ways.iter().find(|way| way.problem.is_none()).unwrap().provider;
        (first, ways.into_iter().filter_map(|way| way.problem).collect())
    }

    #[test]
    fn a_provider_of_onnxruntime_comes_before_ours_and_any_gpu_before_the_cpu() {
        let (cuda, rocm) = ("CUDAExecutionProvider", "ROCMExecutionProvider");
        assert_eq!(taken("1.31.1", &[cuda], false, true).0, cuda);
        assert_eq!(taken("1.22.2", &[rocm], true, false).0, rocm);
        assert_eq!(taken("1.32.0", &["MIGraphXExecutionProvider"], true, false).0, "SparkExecutionProvider");
        assert_eq!(taken("1.32.0", &[cuda], true, false).0, "SparkExecutionProvider");
        assert_eq!(taken("1.22.2", &[cuda], true, false).0, "CPUExecutionProvider");
        let (first, problems) = taken("1.23.2", &[cuda], false, false);
        assert_eq!(first, "CPUExecutionProvider");
        assert!(problems[0].contains("no NVIDIA GPU: none") && problems[1].contains("up to 1.22"), "{problems:?}");
        assert!(problems[2].contains("1.24 or later loads it, this is 1.23.2"), "{problems:?}");
        assert!(taken("1.32.0", &[], false, false).1[2].contains("no GPU; HIP: none; CUDA: none"));
    }
}
