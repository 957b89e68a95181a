//! Names of AMD's processors.

/// The processor in an architecture's name: gfx90a for gfx90a:sramecc+:xnack-.
pub(crate) fn processor(arch: &str) -> &str {
    arch.split(':').next().unwrap_or(arch)
}

/// Whether the code for `processor` has the kernels for matrix cores, as `ops/device/hip.h` decides.
pub(crate) fn has_matrix_cores(processor: &str) -> bool {
    ["gfx908", "gfx90a", "gfx940", "gfx941", "gfx942", "gfx950"].contains(&processor)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::sources::SOURCES;

    #[test]
    fn matrix_cores_are_those_of_the_kernels() {
        let (_, header) = SOURCES.iter().find(|(name, _)| *name == "device/hip.h").unwrap();
        let (condition, _) = header.split_once("#define SPARK_MATRIX").unwrap();
        let condition = condition.rsplit_once("#if ").unwrap().1;
        let named: Vec<_> = condition.split("__").filter(|word| word.starts_with("gfx")).collect();
        assert!(named.len() > 1);
        for processor in named.iter().copied().chain(["gfx906", "gfx1030", "gfx1100", "gfx9"]) {
            assert_eq!(has_matrix_cores(processor), named.contains(&processor), "{processor}");
        }
    }
}
