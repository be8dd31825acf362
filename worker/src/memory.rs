//! What this process takes of the machine's memory, and what is left.

/// Resident memory in bytes; 0 where the system does not tell.
#[must_use]
pub fn resident_bytes() -> u64 {
    status_bytes("VmRSS:")
}

/// The most memory that was resident since [`reset_peak`], in bytes; 0 where the system does not tell.
#[must_use]
pub fn peak_bytes() -> u64 {
    status_bytes("VmHWM:")
}

/// Counts the peak from now on. Where the system cannot, it stays that of the whole process.
pub fn reset_peak() {
    std::fs::write("/proc/self/clear_refs", "5").ok();
}

fn status_bytes(key: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let kib = status
        .lines()
        .find_map(|line| line.strip_prefix(key)?.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    kib.unwrap_or(0) << 10
}

/// Memory that may still be taken, in bytes: what the machine has left, or its part for this process's
/// control group if that is less.
#[must_use]
pub fn free_bytes() -> u64 {
    let mut system = sysinfo::System::new();
    system.refresh_memory();
    let group = system.cgroup_limits().map_or(u64::MAX, |limits| limits.free_memory);
    system.available_memory().min(group)
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn some_memory_is_free() {
        assert!(free_bytes() > 64 << 20);
    }

    #[test]
    fn touched_memory_is_resident_and_at_its_peak() {
        let before = resident_bytes();
        let block = std::hint::black_box(vec![1_u8; 64 << 20]);
        assert!(resident_bytes() >= before + (32 << 20));
        assert!(peak_bytes() >= resident_bytes());
        drop(block);
    }
}
