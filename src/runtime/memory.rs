//! Memory use of this process. From /proc, so only on Linux.

use std::fs;

/// Peak resident memory in bytes since the process started or [`reset_peak`], if the system reports it.
pub fn peak() -> Option<u64> {
    value_of("VmHWM:")
}

/// Resident memory in bytes, if the system reports it.
pub fn resident() -> Option<u64> {
    value_of("VmRSS:")
}

/// Returns freed memory to the system and starts a new peak from the current resident memory. False if the system does
/// not allow it.
pub fn reset_peak() -> bool {
    // Otherwise memory kept by the C library would be attributed to later work.
    #[cfg(target_env = "gnu")]
    // SAFETY: it only releases free memory.
    unsafe {
        libc::malloc_trim(0);
    }
    fs::write("/proc/self/clear_refs", "5").is_ok()
}

/// Memory in bytes that new work can use without swapping, if the system reports it.
pub fn available() -> Option<u64> {
    field_of("/proc/meminfo", "MemAvailable:")
}

fn value_of(field: &str) -> Option<u64> {
    field_of("/proc/self/status", field)
}

fn field_of(file: &str, field: &str) -> Option<u64> {
    let status = fs::read_to_string(file).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(field))?;
    let kilobytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kilobytes * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peak_is_seen_and_forgotten() {
        const SIZE: usize = 64 << 20;
        if peak().is_none() || !reset_peak() {
            return; // this system does not tell
        }
        let before = peak().unwrap();
        let mut block = vec![1u8; SIZE];
        std::hint::black_box(block.as_mut_ptr());
        // Other tests of this process may free memory at the same time.
        assert!(peak().unwrap() > before + SIZE as u64 / 2);
        drop(block);
        let high = peak().unwrap();
        assert!(reset_peak());
        assert!(peak().unwrap() < high && resident().unwrap() > 0);
    }
}
