//! Part of the package's build script: embeds the kernels' sources, from which hipRTC compiles them at run time, and, where
//! a compiler for AMD GPUs is at hand, code objects.
//!
//! SPARK_HIP_ARCHS lists processors ("gfx90a,gfx1100"; "none" for none), and then all must compile. Without it a release
//! build takes those of [`DEFAULT_ARCHS`] that the compilers found know, and other builds none.

use std::env;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Options that matter for what the kernels compute and how fast, at build time and at run time.
const OPTIONS: [&str; 3] = ["-std=c++17", "-O3", "-w"];

/// Instinct MI200, MI300, and the Radeon generations RDNA 2 and RDNA 3.
const DEFAULT_ARCHS: [&str; 4] = ["gfx90a", "gfx942", "gfx1030", "gfx1100"];

/// The one source that includes all others.
const MAIN: &str = "spark.hip";

pub fn main() {
    println!("cargo::rerun-if-changed=ops");
    for name in ["SPARK_HIP_ARCHS", "HIPCC", "ROCM_PATH"] {
        println!("cargo::rerun-if-env-changed={name}");
    }
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("set by cargo"));
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("set by cargo"));
    let ops = root.join("ops");
    let mut text = format!("pub(super) static OPTIONS: &[&str] = &{OPTIONS:?};\n");
    writeln!(text, "/// Name and content of the sources, the main one first.").unwrap();
    writeln!(text, "pub(super) static SOURCES: &[(&str, &str)] = &[").unwrap();
    for name in sources(&ops) {
        writeln!(text, "    ({name:?}, include_str!({:?})),", ops.join(&name)).unwrap();
    }
    writeln!(text, "];\n/// Processor and code object.").unwrap();
    writeln!(text, "pub(super) static CODE_OBJECTS: &[(&str, &[u8])] = &[").unwrap();
    for (arch, object) in code_objects(&ops.join(MAIN), &out) {
        writeln!(text, "    ({arch:?}, include_bytes!({object:?})),").unwrap();
    }
    writeln!(text, "];").unwrap();
    fs::write(out.join("hip_code.rs"), text).expect("OUT_DIR is writable");
}

/// Names of the device sources in `ops`, the main one first.
fn sources(ops: &Path) -> Vec<String> {
    let files = fs::read_dir(ops).expect("ops is there").map(|f| f.expect("a file").file_name());
    let names = files.map(|f| f.into_string().expect("a plain name"));
    let mut names: Vec<_> = names.filter(|n| n.ends_with(".h") || n.ends_with(".hip")).collect();
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
    // Each takes a compiler some ten seconds.
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
            // The processors that nobody asked for are the ones that the compilers know.
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

/// hipcc, then clang, which may know newer processors: the kernels need nothing of HIP's headers and libraries.
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
        command.args(self.options).args(OPTIONS).arg(format!("--offload-arch={arch}"));
        command.args(["-c", "--cuda-device-only", "--no-gpu-bundle-output", "-o"]).arg(object).arg(main);
        let output = command.output().map_err(|e| format!("{}: {e}", self.program.display()))?;
        match output.status.success() {
            true => Ok(()),
            false => Err(format!("{}: {}", self.program.display(), String::from_utf8_lossy(&output.stderr))),
        }
    }
}
