//! Code for NVIDIA GPUs: fatbins from nvcc, and cubins from NVRTC.

use libloading::os::unix::{Library, RTLD_NOW};

use super::driver::Cuda;
use crate::gpu::error::GpuError;
use crate::gpu::rtc::{Compiler, Names};
use crate::gpu::runtime::{CodeFormat, reason};
use crate::gpu::sources::{CUDA_CODE, CUDA_OPTIONS};

/// Names of the NVRTC library, newest first. CUDA 11.2 was the last with a minor version in its name.
const LIBRARIES: [&str; 3] = ["libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so.11.2"];

impl CodeFormat for Cuda {
    fn folder(&self) -> &'static str {
        "cuda"
    }

    fn compiler(&self) -> Result<String, GpuError> {
        Ok(format!("{} {CUDA_OPTIONS:?}", self.version()?))
    }

    fn is_code(&self, code: &[u8]) -> bool {
        is_fatbin(code) || is_cubin(code)
    }

    fn carried(&self, _arch: &str) -> Option<&'static [u8]> {
        // Holds code for several architectures; the driver selects one that fits, or compiles the PTX in it.
        CUDA_CODE
    }

    fn compile(&self, arch: &str) -> Result<Vec<u8>, String> {
        const NAMES: Names = Names { prefix: "nvrtc", result: "CUBIN" };
        let mut problems = Vec::new();
        let library = LIBRARIES.into_iter().find_map(|name| {
            // SAFETY: NVIDIA's compiler, by its name; none of our code depends on its initialisers.
            unsafe { Library::open(Some(name), RTLD_NOW) }.map_err(|e| problems.push(reason(&e))).ok()
        });
        let library = library.ok_or_else(|| problems.join("; "))?;
        let options = CUDA_OPTIONS.iter().map(|o| o.to_string()).chain([format!("--gpu-architecture={arch}")]);
        let code = Compiler::new(&library, NAMES)?.compile(&options.collect::<Vec<_>>())?;
        // It may have started threads.
        std::mem::forget(library);
        match is_cubin(&code) {
            true => Ok(code),
            false => Err(format!("nvrtcGetCUBIN gave {} bytes that are no cubin", code.len())),
        }
    }

    fn advice(&self, _arch: &str) -> (String, String) {
        let carried = if CUDA_CODE.is_some() { "kernels for other GPUs" } else { "no kernels for NVIDIA GPUs" };
        let advice = "Install NVRTC (its library is libnvrtc.so, in NVIDIA's Python package nvidia-cuda-nvrtc) where \
                      the loader finds it, or build libspark_ort.so where nvcc is installed";
        (carried.into(), advice.into())
    }
}

/// Whether `code` is a complete fatbin.
fn is_fatbin(code: &[u8]) -> bool {
    /// Magic, version (16 bits), bytes of the header (16 bits), bytes after it (64 bits).
    const MAGIC: [u8; 4] = 0xba55_ed50_u32.to_le_bytes();
    code.len() >= 16 && code[..4] == MAGIC && {
        let header = u16::from_le_bytes([code[6], code[7]]);
        let rest = u64::from_le_bytes(code[8..16].try_into().expect("eight bytes"));
        u64::from(header).checked_add(rest) == Some(code.len() as u64)
    }
}

/// Whether `code` starts like a cubin, an ELF file for NVIDIA's machine.
fn is_cubin(code: &[u8]) -> bool {
    const EM_CUDA: [u8; 2] = [190, 0];
    code.len() > 64 && code.starts_with(b"\x7fELF\x02") && code[18..20] == EM_CUDA
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_is_known_by_its_header() {
        let mut fatbin = vec![0; 16 + 5];
        fatbin[..8].copy_from_slice(&[0x50, 0xed, 0x55, 0xba, 1, 0, 16, 0]);
        fatbin[8] = 5;
        assert!(is_fatbin(&fatbin) && !is_cubin(&fatbin));
        assert!(!is_fatbin(&fatbin[..20]) && !is_fatbin(&fatbin[..10]) && !is_fatbin(b""));
        let mut cubin = vec![0; 65];
        cubin[..5].copy_from_slice(b"\x7fELF\x02");
        cubin[18] = 190;
        assert!(is_cubin(&cubin) && !is_fatbin(&cubin));
        cubin[18] = 224;
        assert!(!is_cubin(&cubin) && !is_cubin(b"\x7fELF\x02"));
        assert!(CUDA_CODE.is_none_or(is_fatbin));
    }
}
