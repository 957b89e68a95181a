//! Part of the package's build script: embeds the kernels' sources, from which hipRTC and NVRTC compile at run time,
//! and, if compilers are installed, code for AMD and NVIDIA GPUs. Makes Rust constants of `ops/limits.h`.
//!
//! SPARK_HIP_ARCHS lists processors ("gfx90a,gfx1100"; "none" for none), all of which must then compile. Without it a
//! release build uses those of [`DEFAULT_ARCHS`] that the compilers found support, and other builds none.

use std::env;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Options that affect the kernels' results and speed, at build time and at run time.
const HIP_OPTIONS: [&str; 3] = ["-std=c++17", "-O3", "-w"];
/// The compiler must not fuse multiply-adds by itself: masks must come out as on the CPU.
const CUDA_OPTIONS: [&str; 3] = ["-std=c++17", "--fmad=false", "-w"];

/// Code for A100 and H100; PTX of the latter serves newer GPUs.
const CUDA_TARGETS: [&str; 3] =
    ["arch=compute_80,code=sm_80", "arch=compute_90,code=sm_90", "arch=compute_90,code=compute_90"];

/// Instinct MI200, MI300, and the Radeon generations RDNA 2 and RDNA 3.
const DEFAULT_ARCHS: [&str; 4] = ["gfx90a", "gfx942", "gfx1030", "gfx1100"];

/// The source that includes all others.
const MAIN: &str = "spark.hip";

pub fn main() {
    println!("cargo::rerun-if-changed=ops");
    for name in ["SPARK_HIP_ARCHS", "HIPCC", "ROCM_PATH", "SPARK_CUDA", "NVCC"] {
        println!("cargo::rerun-if-env-changed={name}");
    }
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("set by cargo"));
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("set by cargo"));
    let ops = root.join("ops");
    let mut text = String::from("/// Name and content of the sources, the main one first.\n");
    writeln!(text, "pub(super) static SOURCES: &[(&str, &str)] = &[").unwrap();
    for name in sources(&ops) {
        writeln!(text, "    ({name:?}, include_str!({:?})),", ops.join(&name)).unwrap();
    }
    writeln!(text, "];\npub(super) static HIP_OPTIONS: &[&str] = &{HIP_OPTIONS:?};").unwrap();
    writeln!(text, "pub(super) static CUDA_OPTIONS: &[&str] = &{CUDA_OPTIONS:?};").unwrap();
    writeln!(text, "/// Processor and code object.").unwrap();
    writeln!(text, "pub(super) static HIP_CODE: &[(&str, &[u8])] = &[").unwrap();
    for (arch, object) in code_objects(&ops.join(MAIN), &out) {
        writeln!(text, "    ({arch:?}, include_bytes!({object:?})),").unwrap();
    }
    let fatbin = fatbin(&ops.join(MAIN), &out).map(|file| format!("Some(include_bytes!({file:?}))"));
    writeln!(text, "];\n/// A fatbin.").unwrap();
    writeln!(text, "pub(super) static CUDA_CODE: Option<&[u8]> = {};", fatbin.unwrap_or("None".into())).unwrap();
    fs::write(out.join("kernels.rs"), text).expect("OUT_DIR is writable");
    let limits = fs::read_to_string(ops.join("limits.h")).expect("ops/limits.h is there");
    fs::write(out.join("limits.rs"), constants(&limits)).expect("OUT_DIR is writable");
}

/// The numbers that a header defines, as Rust constants.
fn constants(header: &str) -> String {
    let mut text = String::new();
    for definition in header.lines().filter_map(|line| line.strip_prefix("#define SPARK_")) {
        if let Some((name, value)) = definition.split_once(' ') {
            let value: u32 = value.parse().unwrap_or_else(|_| panic!("ops/limits.h: {definition} is no number"));
            writeln!(text, "pub const {name}: u32 = {value};").unwrap();
        }
    }
    text
}

/// The kernels for NVIDIA GPUs. SPARK_CUDA=1 requires them, 0 omits them; without it a release build makes them if
/// nvcc is on the PATH or NVCC names it.
fn fatbin(main: &Path, out: &Path) -> Option<PathBuf> {
    let asked = env::var("SPARK_CUDA").ok();
    let wanted = match asked.as_deref() {
        Some("1") => true,
        Some(_) => false,
        None => env::var("PROFILE").as_deref() == Ok("release"),
    };
    let nvcc = env::var_os("NVCC").map(PathBuf::from).or_else(|| on_path("nvcc")).filter(|_| wanted);
    let Some(nvcc) = nvcc else {
        assert!(asked.as_deref() != Some("1"), "SPARK_CUDA=1, but no nvcc is found: set NVCC");
        return None;
    };
    let fatbin = out.join("spark.fatbin");
    let mut command = Command::new(&nvcc);
    command.args(CUDA_OPTIONS).args(CUDA_TARGETS.iter().flat_map(|target| ["-gencode", target]));
    command.args(["-x", "cu", "-O3", "-fatbin", "-o"]).arg(&fatbin).arg(main);
    let problem = match command.output() {
        Ok(output) if output.status.success() => return Some(fatbin),
        Ok(output) => String::from_utf8_lossy(&output.stderr).into_owned(),
        Err(e) => e.to_string(),
    };
    // Not explicitly requested: the library compiles the kernels when it needs them.
    assert!(asked.is_none(), "{}: {problem}", nvcc.display());
    println!("cargo::warning=no kernels for NVIDIA GPUs are built in: {}: {problem}", nvcc.display());
    None
}

/// Names of the device sources in `ops`, the main one first.
fn sources(ops: &Path) -> Vec<String> {
    let mut names = Vec::new();
    for folder in ["", "device", "format"] {
        for file in fs::read_dir(ops.join(folder)).expect("ops is there") {
            let name = file.expect("a file").file_name().into_string().expect("a plain name");
            // The emulation is for hosts only.
            if (name.ends_with(".h") || name.ends_with(".hip")) && name != "emulated.h" {
                names.push(if folder.is_empty() { name } else { format!("{folder}/{name}") });
            }
        }
    }
    names.sort_by_key(|n| (n != MAIN, n.clone()));
    assert_eq!(names.first().map(String::as_str), Some(MAIN), "ops/{MAIN} is there");
    names
}

/// Processors and their code objects.
fn code_objects(main: &Path, out: &Path) -> Vec<(String, PathBuf)> {
    let asked = env::var("SPARK_HIP_ARCHS").ok();
    let archs: Vec<String> = match asked.as_deref() {
        Some("none") => return Vec::new(),
        Some(list) => list.split([',', ';', ' ']).filter(|a| !a.is_empty()).map(str::to_owned).collect(),
        None if env::var("PROFILE").as_deref() == Ok("release") => DEFAULT_ARCHS.map(str::to_owned).to_vec(),
        None => return Vec::new(),
    };
    let compilers = compilers();
    if asked.is_some() && !archs.is_empty() && compilers.is_empty() {
        panic!("SPARK_HIP_ARCHS asks for {}, but no hipcc is found: set HIPCC or ROCM_PATH", archs.join(", "));
    }
    for arch in &archs {
        let plain = arch.starts_with("gfx") && arch.chars().all(|c| c.is_ascii_alphanumeric());
        assert!(plain, "SPARK_HIP_ARCHS: {arch:?} is no processor; write it like gfx90a");
    }
    // Each takes a compiler minutes.
    let compile = |arch: &str| {
        let object = out.join(format!("spark.{arch}.co"));
        let mut problems = Vec::new();
        for compiler in &compilers {
            match compiler.compile(main, arch, &object) {
                Ok(()) => return Ok(object),
                Err(problem) => problems.push(problem),
            }
        }
        Err(problems.join("\n"))
    };
    let results: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = archs.iter().map(|arch| scope.spawn(|| compile(arch))).collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
    });
    let mut objects = Vec::new();
    for (arch, result) in archs.into_iter().zip(results) {
        match result {
            Ok(object) => objects.push((arch, object)),
            // Without an explicit list, processors that the compilers do not know are skipped.
            Err(_) if asked.is_none() => {}
            Err(problem) => panic!("{arch} does not compile:\n{problem}"),
        }
    }
    objects
}

/// A compiler for AMD GPUs.
struct Compiler {
    program: PathBuf,
    options: &'static [&'static str],
}

/// hipcc, then clang, which may know newer processors: the kernels need neither HIP's headers nor its libraries.
fn compilers() -> Vec<Compiler> {
    let named = env::var_os("HIPCC").map(PathBuf::from);
    let rocm = env::var_os("ROCM_PATH").map_or_else(|| PathBuf::from("/opt/rocm"), PathBuf::from).join("bin/hipcc");
    let hipcc = named.or_else(|| rocm.is_file().then_some(rocm)).or_else(|| on_path("hipcc"));
    let clang = (16..30).rev().find_map(|version| on_path(&format!("clang-{version}")));
    let hipcc = hipcc.map(|program| Compiler { program, options: &[] });
    let clang = clang.map(|program| Compiler { program, options: &["-x", "hip", "-nogpulib", "-nogpuinc"] });
    hipcc.into_iter().chain(clang).collect()
}

fn on_path(program: &str) -> Option<PathBuf> {
    env::split_paths(&env::var_os("PATH")?).map(|folder| folder.join(program)).find(|path| path.is_file())
}

impl Compiler {
    fn compile(&self, main: &Path, arch: &str, object: &Path) -> Result<(), String> {
        let mut command = Command::new(&self.program);
        command.args(self.options).args(HIP_OPTIONS).arg(format!("--offload-arch={arch}"));
        command.args(["-c", "--cuda-device-only", "--no-gpu-bundle-output", "-o"]).arg(object).arg(main);
        let output = command.output().map_err(|e| format!("{}: {e}", self.program.display()))?;
        match output.status.success() {
            true => Ok(()),
            false => Err(format!("{}: {}", self.program.display(), String::from_utf8_lossy(&output.stderr))),
        }
    }
}
