//! AMD GPUs that the kernel's driver knows, whether or not HIP is installed.

use std::fs;

/// Its description of devices, one folder each.
const FOLDER: &str = "/sys/class/kfd/kfd/topology/nodes";

/// Processors of the devices, such as gfx942.
pub fn processors() -> Vec<String> {
    let folders = fs::read_dir(FOLDER).into_iter().flatten().flatten();
    let texts = folders.filter_map(|folder| fs::read_to_string(folder.path().join("properties")).ok());
    texts.filter_map(|text| processor(&text)).collect()
}

/// The processor in a device's properties; None for a CPU.
fn processor(properties: &str) -> Option<String> {
    let line = properties.lines().find_map(|line| line.strip_prefix("gfx_target_version "))?;
    let number: u32 = line.trim().parse().ok().filter(|&n| n > 0)?;
    Some(format!("gfx{}{:x}{:x}", number / 10_000, number / 100 % 100, number % 100))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processors_are_named_as_compilers_name_them() {
        let named = |number: u32| processor(&format!("cpu_cores_count 0\ngfx_target_version {number}\nsimd_count 4\n"));
        let pairs = [(90010, "gfx90a"), (90402, "gfx942"), (100300, "gfx1030"), (110001, "gfx1101")];
        for (number, name) in pairs {
            assert_eq!(named(number).as_deref(), Some(name));
        }
        // A CPU.
        assert_eq!(named(0), None);
        assert_eq!(processor("simd_count 4\n"), None);
    }
}
