//! The most memory that this process ever had resident.

/// In bytes; `None` where the system does not tell.
pub(super) fn read() -> Option<u64> {
    high_water_mark(&std::fs::read_to_string("/proc/self/status").ok()?)
}

/// The line `VmHWM:   1234 kB` of Linux.
fn high_water_mark(status: &str) -> Option<u64> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_high_water_mark_is_read_in_bytes_or_not_at_all() {
        let status = "VmPeak:\t  9 kB\nVmHWM:\t    5120 kB\nVmRSS:\t 4 kB\n";
        assert_eq!(high_water_mark(status), Some(5120 * 1024));
        for other in ["", "VmHWM:", "VmHWM: x kB", "VmRSS: 4 kB"] {
            assert_eq!(high_water_mark(other), None, "{other}");
        }
    }
}
