//! Resident memory over all processes of a run.

use std::time::Duration;

use super::supervisor::Pids;
use crate::report::Launch;

const SAMPLE_EVERY: Duration = Duration::from_millis(500);
/// Samples between two times that the totals are written down: ten seconds.
const SAMPLES_PER_SAVE: u32 = 20;

/// Samples for ever, for the totals; the caller drops the future to stop it.
pub(crate) async fn watch(pids: Pids, launch: &Launch) {
    let mut samples = 0;
    loop {
        let ids: Vec<u32> = {
            let pids = pids
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner);
            pids.values().copied().chain([std::process::id()]).collect()
        };
        launch.saw_memory(ids.into_iter().map(resident_kib).sum());
        samples += 1;
        if samples % SAMPLES_PER_SAVE == 0
            && let Err(error) = launch.save()
        {
            tracing::warn!("{error:#}");
        }
        tokio::time::sleep(SAMPLE_EVERY).await;
    }
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
        assert!(resident_kib(own) > 0 && peak_resident_kib(own) >= resident_kib(own));
        assert_eq!(resident_kib(u32::MAX), 0);
    }
}
