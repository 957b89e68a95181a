//! Kernels as code objects: those that this library carries, and what others are made from.

include!(concat!(env!("OUT_DIR"), "/hip_code.rs"));

/// The processor of an architecture's name: gfx90a of gfx90a:sramecc+:xnack-.
pub(super) fn processor(arch: &str) -> &str {
    arch.split(':').next().unwrap_or(arch)
}

/// Whether the code for `processor` has the kernels for matrix cores, as `ops/device_hip.h` decides.
pub(super) fn has_matrix_cores(processor: &str) -> bool {
    ["gfx908", "gfx90a", "gfx940", "gfx941", "gfx942", "gfx950"].contains(&processor)
}

/// The code object for `processor` that this library carries.
pub(super) fn carried(processor: &str) -> Option<&'static [u8]> {
    CODE_OBJECTS.iter().find(|(name, _)| *name == processor).map(|(_, code)| *code)
}

/// The processors whose code objects this library carries, for people.
pub fn carried_names() -> String {
    match CODE_OBJECTS {
        [] => "no compiled kernels".into(),
        some => format!("kernels for {}", some.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ")),
    }
}

/// Whether `code` begins as a code object of an AMD GPU, or a bundle of them, does.
pub(super) fn is_code_object(code: &[u8]) -> bool {
    const EM_AMDGPU: [u8; 2] = [224, 0];
    let elf = code.len() > 64 && code.starts_with(b"\x7fELF\x02\x01") && code[18..20] == EM_AMDGPU;
    elf || code.starts_with(b"__CLANG_OFFLOAD_BUNDLE__") || code.starts_with(b"CCOB")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matrix_cores_are_those_of_the_kernels() {
        let (_, header) = SOURCES.iter().find(|(name, _)| *name == "device_hip.h").unwrap();
        let (condition, _) = header.split_once("#define SPARK_MATRIX").unwrap();
        let condition = condition.rsplit_once("#if ").unwrap().1;
        let named: Vec<_> = condition.split("__").filter(|word| word.starts_with("gfx")).collect();
        assert!(named.len() > 1);
        for processor in named.iter().copied().chain(["gfx906", "gfx1030", "gfx1100", "gfx9"]) {
            assert_eq!(has_matrix_cores(processor), named.contains(&processor), "{processor}");
        }
    }

    #[test]
    fn what_is_carried_is_code_for_amd_gpus() {
        for (name, code) in CODE_OBJECTS {
            assert!(name.starts_with("gfx") && is_code_object(code), "{name}");
            assert_eq!(carried(processor(&format!("{name}:xnack-"))), Some(*code));
        }
        assert!(!is_code_object(b"\x7fELF"));
        assert!(carried("gfx1").is_none());
    }
}
