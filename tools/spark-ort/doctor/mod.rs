//! `spark-ort doctor`: reports what is installed and whether it works, for bug reports.

mod driver;
mod kfd;
mod trial;
mod ways;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Result;
use serde::Serialize;
use spark_ort::cpu::{CPU_VARIABLE, InstructionSet};
use spark_ort::rewrite::find_library;
use spark_ort::runtime::load;

use driver::Driver;
use ways::Way;

use crate::bench::machine::processor;
use crate::terminal::{pass_on, show};

/// Say what this machine has: ONNX Runtime, the processor's instructions, GPUs, which execution provider takes the
/// operators, and whether the library works
///
/// Ends with an error status if there is no ONNX Runtime that can be used, or the library does not work in it.
#[derive(clap::Args)]
#[command(after_long_help = "\
Examples:
  spark-ort doctor
  ORT_DYLIB_PATH=/opt/ort/lib/libonnxruntime.so spark-ort doctor --json")]
pub struct Args {
    /// The libspark_ort.so to try [default: the one beside this program]
    #[arg(long, value_name = "FILE")]
    library: Option<PathBuf>,

    /// Write JSON
    #[arg(long)]
    json: bool,
}

/// The findings. A problem is reported for everything that is missing or does not work.
#[derive(Serialize)]
struct Findings {
    version: &'static str,
    system: System,
    cpu: Cpu,
    onnxruntime: Result<Runtime, String>,
    library: Result<Library, String>,
    gpus: Gpus,
    /// Execution providers with the operators, in order of preference.
    ways: Vec<Way>,
}

#[derive(Serialize)]
struct Gpus {
    /// Drivers, or why they were not found.
    hip: Result<Driver, String>,
    cuda: Result<Driver, String>,
    /// Processors of AMD GPUs that the kernel's driver knows, such as gfx942.
    kernel_driver: Vec<String>,
}

#[derive(Serialize)]
struct System {
    target: String,
    /// Version of the C library, if it is glibc.
    glibc: Option<String>,
}

#[derive(Serialize)]
struct Cpu {
    processor: Option<String>,
    cores: usize,
    /// Instruction sets with kernels of their own, and whether the processor has them.
    features: Vec<(&'static str, bool)>,
    /// The selected kernels.
    path: Result<&'static str, &'static str>,
}

#[derive(Serialize)]
struct Runtime {
    version: String,
    #[serde(serialize_with = "spark_ort::json_path::path")]
    file: PathBuf,
    providers: Vec<String>,
}

#[derive(Serialize)]
struct Library {
    #[serde(serialize_with = "spark_ort::json_path::path")]
    file: PathBuf,
    bytes: u64,
    /// Why a trial run failed.
    problem: Option<String>,
}

pub fn run(args: &Args) -> Result<ExitCode> {
    let findings = Findings::new(args.library.as_deref());
    match args.json {
        true => pass_on(&format!("{}\n", serde_json::to_string_pretty(&findings)?))?,
        false => show(&findings.lines())?,
    }
    Ok(if findings.works() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

impl Findings {
    fn new(library: Option<&Path>) -> Self {
        let runtime = load();
        let library = find_library(library).map_err(|e| e.to_string()).map(|file| Library {
            bytes: std::fs::metadata(&file).map_or(0, |m| m.len()),
            problem: match runtime {
                Ok(runtime) => trial::run(runtime, &file).err().map(|e| format!("{e:#}")),
                Err(_) => Some("not tried, for lack of ONNX Runtime".into()),
            },
            file,
        });
        let gpus = Gpus { hip: driver::hip(), cuda: driver::cuda(), kernel_driver: kfd::processors() };
        let [amd, nvidia] = [&gpus.hip, &gpus.cuda].map(|driver| driver::devices_of(driver).map(|_| ()));
        let ways = match &runtime {
            Ok(runtime) => ways::ways(runtime.version(), &runtime.providers(), amd, nvidia),
            Err(_) => Vec::new(),
        };
        Self {
            version: env!("CARGO_PKG_VERSION"),
            system: System { target: format!("{}-{}", std::env::consts::ARCH, std::env::consts::OS), glibc: glibc() },
            cpu: Cpu {
                processor: processor(),
                cores: std::thread::available_parallelism().map_or(1, |n| n.get()),
                features: features(),
                path: InstructionSet::chosen().map(InstructionSet::name),
            },
            onnxruntime: runtime.map_err(|e| e.to_string()).map(|runtime| Runtime {
                version: runtime.version().into(),
                file: runtime.path().into(),
                providers: runtime.providers(),
            }),
            library,
            gpus,
            ways,
        }
    }

    fn works(&self) -> bool {
        self.cpu.path.is_ok() && self.library.as_ref().is_ok_and(|library| library.problem.is_none())
    }

    /// Lines for people.
    fn lines(&self) -> String {
        let mut lines = vec![("spark-ort", self.version.to_string())];
        let mut line = |name, text: String| lines.push((name, text));
        let glibc = self.system.glibc.as_ref().map_or("no glibc".into(), |version| format!("glibc {version}"));
        line("system", format!("{}, {glibc}", self.system.target));
        let processor = self.cpu.processor.as_deref().unwrap_or("unknown");
        line("processor", format!("{processor}, {} cores", self.cpu.cores));
        for (name, wanted) in [("features", true), ("not there", false)] {
            let list: Vec<_> = self.cpu.features.iter().filter(|(_, has)| *has == wanted).map(|(n, _)| *n).collect();
            if !list.is_empty() {
                line(name, list.join(" "));
            }
        }
        line(
            "kernels",
            match self.cpu.path {
                Ok(path) => format!("{path} ({CPU_VARIABLE} names others)"),
                Err(problem) => format!("PROBLEM: {problem}"),
            },
        );
        match &self.onnxruntime {
            Ok(runtime) => {
                line("ONNX Runtime", format!("{}, {}", runtime.version, runtime.file.display()));
                line("providers", runtime.providers.join(" "));
            }
            Err(problem) => line("ONNX Runtime", format!("PROBLEM: {problem}")),
        }
        match &self.library {
            Ok(Library { file, bytes, problem }) => {
                line("library", format!("{}, {bytes} bytes", file.display()));
                line(
                    "trial run",
                    match problem {
                        None => "a prompt and a decoded token went through both operators".into(),
                        Some(problem) => format!("PROBLEM: {problem}"),
                    },
                );
            }
            Err(problem) => line("library", format!("PROBLEM: {problem}")),
        }
        line("HIP", driver::line(&self.gpus.hip));
        let known = match self.gpus.kernel_driver.is_empty() {
            true => "none known to the kernel driver".to_string(),
            false => format!("kernel driver: {}", self.gpus.kernel_driver.join(", ")),
        };
        let devices = |driver| driver::devices_of(driver).map_or_else(|why| why, |names| names.join(", "));
        line("AMD GPUs", format!("{}; {known}", devices(&self.gpus.hip)));
        line("CUDA driver", driver::line(&self.gpus.cuda));
        line("NVIDIA GPUs", devices(&self.gpus.cuda));
        let mut taken = false;
        for Way { provider, problem } in &self.ways {
            match problem {
                Some(problem) => line("not on", format!("{provider}: {problem}")),
                None if !taken => line("runs on", provider.to_string()),
                None => line("or on", provider.to_string()),
            }
            taken |= problem.is_none();
        }
        lines.into_iter().map(|(name, text)| format!("{name:<14}{text}\n")).collect()
    }
}

fn glibc() -> Option<String> {
    #[cfg(target_env = "gnu")]
    // SAFETY: the function returns a C string that lives as long as the process.
    return Some(unsafe { std::ffi::CStr::from_ptr(libc::gnu_get_libc_version()) }.to_string_lossy().into_owned());
    #[cfg(not(target_env = "gnu"))]
    None
}

#[cfg(target_arch = "x86_64")]
fn features() -> Vec<(&'static str, bool)> {
    macro_rules! ask {
        ($($name:tt)*) => { vec![$(($name, std::arch::is_x86_feature_detected!($name))),*] };
    }
    ask!(
        "avx" "avx2" "fma" "f16c" "bmi2" "popcnt" "avxvnni"
        "avx512f" "avx512bw" "avx512dq" "avx512vl" "avx512vbmi" "avx512vbmi2" "avx512vnni"
    )
}

#[cfg(not(target_arch = "x86_64"))]
fn features() -> Vec<(&'static str, bool)> {
    Vec::new()
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernels_ask_for_is_shown() {
        let kernels = [
            include_str!("../../../src/cpu/isa/x86_64/avx2/dot.rs"),
            include_str!("../../../src/cpu/isa/x86_64/avx2/vector.rs"),
            include_str!("../../../src/cpu/isa/x86_64/avx512/vector.rs"),
            include_str!("../../../src/cpu/isa/x86_64/avx512_vnni/mod.rs"),
        ];
        let shown: Vec<_> = features().into_iter().map(|(name, _)| name).collect();
        for source in kernels {
            let asked: Vec<_> = source.split("is_x86_feature_detected!(\"").skip(1).collect();
            assert!(!asked.is_empty());
            for name in asked.iter().map(|rest| rest.split('"').next().unwrap_or_default()) {
                assert!(shown.contains(&name), "{name}");
            }
        }
    }
}
