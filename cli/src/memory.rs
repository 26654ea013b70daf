//! What processes take of the machine: their memory, what the allocator keeps of it, and who computes first.

/// Gives it back to the system, for this thread and for those that compute with it. Allocators keep
/// freed memory by thread; a role that computes on other threads, or in other sizes, would not get it.
pub(crate) fn give_back() {
    collect();
    rayon::broadcast(|_| collect());
}

fn collect() {
    // SAFETY: it frees what is free already, of the calling thread.
    unsafe { libmimalloc_sys::mi_collect(true) };
}

/// Has this process compute when no other wants to.
pub(crate) fn yield_to_others() {
    const LOWEST: i32 = 19;
    // SAFETY: it takes numbers alone. Where it is refused, the process computes as others do.
    unsafe { nix::libc::setpriority(nix::libc::PRIO_PROCESS, 0, LOWEST) };
}

/// Resident set of one process in KiB; 0 once it is gone.
pub(crate) fn resident_kib(pid: u32) -> u64 {
    status_field(pid, "VmRSS:")
}

/// The highest resident set that one process ever had, in KiB.
pub(crate) fn peak_resident_kib(pid: u32) -> u64 {
    status_field(pid, "VmHWM:")
}

fn status_field(pid: u32, field: &str) -> u64 {
    let Ok(status) = std::fs::read_to_string(format!("/proc/{pid}/status")) else {
        return 0;
    };
    let line = status.lines().find_map(|line| line.strip_prefix(field));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_memory_is_seen_and_a_dead_process_has_none() {
        let own = std::process::id();
        // In this order: other tests take more memory meanwhile.
        let resident = resident_kib(own);
        assert!(resident > 0 && peak_resident_kib(own) >= resident);
        assert_eq!(resident_kib(u32::MAX), 0);
    }
}
