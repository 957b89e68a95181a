//! The GPU that the host emulates: `ops/` compiled by the host's C++ compiler.

#![allow(dead_code)]

pub mod operands;

use std::collections::hash_map::DefaultHasher;
use std::ffi::{CString, c_char, c_int, c_void};
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use libloading::Library;
use spark_ort::gpu::plan::{Device, Plan};

use gpu::{Allocation, Gpu};

pub mod gpu;
mod nvidia;

const SOURCES: [&str; 6] = ["fiber", "machine", "wave64", "wave32", "faults", "banks"];

/// Whether there is a GPU to test on: a real one is asked for, or a compiler can build the emulated one.
pub fn at_hand() -> Result<(), &'static str> {
    let compiles = || std::process::Command::new(compiler(Path::new(".")).path()).arg("--version").output().is_ok();
    if std::env::var_os(gpu::GPU_VARIABLE).is_some_and(|gpu| !gpu.is_empty()) || compiles() {
        return Ok(());
    }
    Err("no C++ compiler: the emulated GPU cannot be built")
}

/// The compiled library, made at its first use. Its name follows from its sources, so that it is never out of date.
pub fn library() -> PathBuf {
    let ops = Path::new(env!("CARGO_MANIFEST_DIR")).join("ops");
    let mut hasher = DefaultHasher::new();
    for folder in [ops.clone(), ops.join("emulation"), ops.join("device"), ops.join("format")] {
        let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|f| f.unwrap().path()).collect();
        files.sort();
        for file in files.iter().filter(|f| f.is_file()) {
            (file, std::fs::read(file).unwrap()).hash(&mut hasher);
        }
    }
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let library = folder.join(format!("libspark_emulation-{:016x}.so", hasher.finish()));
    if !library.exists() {
        std::fs::create_dir_all(folder).unwrap();
        let build = tempfile::tempdir_in(folder).unwrap();
        build_library(&ops, build.path(), &build.path().join("library.so"));
        // Test binaries that build it at once make the same; the last one stays.
        std::fs::rename(build.path().join("library.so"), &library).unwrap();
    }
    library
}

fn compiler(folder: &Path) -> cc::Tool {
    let host = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    cc::Build::new()
        .cpp(true)
        .std("c++17")
        .opt_level(1)
        .pic(true)
        .warnings(true)
        .extra_warnings(true)
        .cargo_metadata(false)
        .cargo_warnings(false)
        .host(&host)
        .target(&host)
        .out_dir(folder)
        .get_compiler()
}

fn build_library(ops: &Path, folder: &Path, library: &Path) {
    let compiler = compiler(folder);
    let run = |command: &mut std::process::Command| {
        let output = command.output().unwrap_or_else(|e| panic!("a C++ compiler is needed: {command:?}: {e}"));
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && !errors.contains("warning:"), "{command:?}:\n{errors}");
    };
    let object = |source: &str| folder.join(source).with_extension("o");
    std::thread::scope(|scope| {
        for source in SOURCES {
            let mut command = compiler.to_command();
            // Sums and products round as on the CPU; the project's own symbols stay inside.
            command.args(["-ffp-contract=off", "-fvisibility=hidden", "-c"]);
            command.arg(ops.join("emulation").join(source).with_extension("cpp")).arg("-o").arg(object(source));
            scope.spawn(move || run(&mut command));
        }
    });
    let mut link = compiler.to_command();
    run(link.arg("-shared").args(SOURCES.map(object)).arg("-o").arg(library));
}

type Emulate =
    unsafe extern "C" fn(*const c_char, *const u32, *const u32, u32, *const c_void, u32, *mut c_char, usize) -> c_int;

/// The emulated GPU.
pub struct Emulation(Library);

impl Emulation {
    /// The one of this process.
    pub fn get() -> &'static Self {
        static ONE: OnceLock<Emulation> = OnceLock::new();
        // SAFETY: the library is ours; what it runs at load makes its kernels known and nothing else.
        ONE.get_or_init(|| Self(unsafe { Library::new(library()) }.unwrap()))
    }

    /// Accesses of the kernels for matrix cores that wait for another lane's, of all sizes of them.
    pub fn bank_conflicts(&self) -> u32 {
        // SAFETY: the signature in ops/emulation/banks.cpp.
        unsafe { self.0.get::<unsafe extern "C" fn() -> u32>(b"spark_emulation_bank_conflicts\0").unwrap()() }
    }
}

impl Gpu for Emulation {
    fn device(&self, wanted: &Device) -> Device {
        *wanted
    }

    fn allocate(&'static self, bytes: &[u8]) -> Box<dyn Allocation> {
        Box::new(Memory::new(bytes))
    }

    fn run(&self, plan: &Plan, wave: u32) -> Result<(), String> {
        // SAFETY: the signature in ops/emulation/machine.cpp.
        let emulate = unsafe { self.0.get::<Emulate>(b"spark_emulate\0") }.unwrap();
        for launch in &plan.launches {
            let kernel = CString::new(&*launch.kernel).unwrap();
            let mut error = [0u8; 512];
            // SAFETY: the pointers are to values of the lengths that the signature says; what the kernel touches beyond
            // them is checked by the emulation.
            let status = unsafe {
                emulate(
                    kernel.as_ptr(),
                    launch.grid.as_ptr(),
                    launch.block.as_ptr(),
                    launch.shared_bytes,
                    (&raw const launch.call).cast(),
                    wave,
                    error.as_mut_ptr().cast(),
                    error.len(),
                )
            };
            if status != 0 {
                let end = error.iter().position(|&b| b == 0).unwrap();
                return Err(String::from_utf8_lossy(&error[..end]).into_owned());
            }
        }
        Ok(())
    }
}

/// Memory that kernels may touch, and not a byte beyond it.
struct Memory(Box<[u64]>, usize);

impl Memory {
    fn new(bytes: &[u8]) -> Self {
        let mut words = vec![0u64; bytes.len().div_ceil(8).max(1)].into_boxed_slice();
        // SAFETY: the words have room for the bytes, and any byte may stand in a word.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), words.as_mut_ptr().cast(), bytes.len()) };
        // SAFETY: the signature in ops/emulation/machine.cpp; it stores two numbers.
        unsafe {
            let allow =
                Emulation::get().0.get::<unsafe extern "C" fn(*const c_void, usize)>(b"spark_emulation_allow\0");
            allow.unwrap()(words.as_ptr().cast(), bytes.len());
        }
        Self(words, bytes.len())
    }
}

impl Allocation for Memory {
    fn at(&self) -> *mut c_void {
        self.0.as_ptr().cast_mut().cast()
    }

    fn bytes(&self) -> Vec<u8> {
        // SAFETY: kernels have run to their end, and the words hold this many bytes.
        unsafe { std::slice::from_raw_parts(self.0.as_ptr().cast(), self.1) }.to_vec()
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: as in `new`.
        unsafe {
            let forbid = Emulation::get().0.get::<unsafe extern "C" fn(*const c_void)>(b"spark_emulation_forbid\0");
            forbid.unwrap()(self.at());
        }
    }
}
