//! Code objects for AMD GPUs.

use libloading::os::unix::{Library, RTLD_NOW};

use super::arch::processor;
use super::driver::{Hip, already_loaded};
use crate::gpu::error::GpuError;
use crate::gpu::rtc::{Compiler, Names};
use crate::gpu::runtime::{CodeFormat, reason};
use crate::gpu::sources::{HIP_CODE, HIP_OPTIONS};

/// Whether `code` starts like a code object for an AMD GPU, or a bundle of them.
pub(super) fn is_code_object(code: &[u8]) -> bool {
    const EM_AMDGPU: [u8; 2] = [224, 0];
    let elf = code.len() > 64 && code.starts_with(b"\x7fELF\x02\x01") && code[18..20] == EM_AMDGPU;
    elf || code.starts_with(b"__CLANG_OFFLOAD_BUNDLE__") || code.starts_with(b"CCOB")
}

/// Uses hipRTC where this library has no embedded code object for a device.
impl CodeFormat for Hip {
    fn folder(&self) -> &'static str {
        "hip"
    }

    fn compiler(&self) -> Result<String, GpuError> {
        Ok(format!("{} {HIP_OPTIONS:?}", self.version()?))
    }

    fn is_code(&self, code: &[u8]) -> bool {
        is_code_object(code)
    }

    fn carried(&self, arch: &str) -> Option<&'static [u8]> {
        HIP_CODE.iter().find(|(name, _)| *name == processor(arch)).map(|(_, code)| *code)
    }

    fn compile(&self, arch: &str) -> Result<Vec<u8>, String> {
        const NAMES: Names = Names { prefix: "hiprtc", result: "Code" };
        let options: Vec<_> =
            HIP_OPTIONS.iter().map(|o| o.to_string()).chain([format!("--offload-arch={arch}")]).collect();
        let file = format!("libhiprtc.so.{}", self.major);
        // SAFETY: AMD's compiler, by its name; none of our code depends on its initialisers.
        let separate = already_loaded(&file).map_or_else(|| unsafe { Library::open(Some(&file), RTLD_NOW) }, Ok);
        let code = match &separate {
            Ok(library) => Compiler::new(library, NAMES)?.compile(&options)?,
            // Up to version 5, HIP's own library contains hipRTC.
            Err(e) => Compiler::new(self.library(), NAMES).map_err(|_| reason(e))?.compile(&options)?,
        };
        match is_code_object(&code) {
            true => Ok(code),
            false => Err(format!("hiprtcGetCode gave {} bytes that are no code object", code.len())),
        }
    }

    fn advice(&self, arch: &str) -> (String, String) {
        let carried = match HIP_CODE {
            [] => "no compiled kernels".into(),
            some => format!("kernels for {}", some.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ")),
        };
        let advice = format!(
            "Install hipRTC of the same ROCm (its library is libhiprtc.so, in AMD's package hip-runtime-amd), or build \
             libspark_ort.so where hipcc is installed with SPARK_HIP_ARCHS={}",
            processor(arch)
        );
        (carried, advice)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_carried_is_code_for_amd_gpus() {
        for (name, code) in HIP_CODE {
            assert!(name.starts_with("gfx") && is_code_object(code), "{name}");
            assert_eq!(processor(&format!("{name}:xnack-")), *name);
        }
        assert!(!is_code_object(b"\x7fELF"));
    }
}
