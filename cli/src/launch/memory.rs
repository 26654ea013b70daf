//! Resident memory over all processes of a run.

use std::time::Duration;

use super::supervisor::Pids;
use crate::{memory::resident_kib, totals::Launch};

const SAMPLE_EVERY: Duration = Duration::from_millis(500);
/// Samples between two times that the totals are written down: ten seconds.
const SAMPLES_PER_SAVE: u32 = 20;

/// Samples for ever, for the totals; the caller drops the future to stop it.
pub(super) async fn watch(pids: Pids, launch: &Launch) {
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
        if samples % SAMPLES_PER_SAVE == 0 {
            // What can't be written now is tried again, and reported when the launch ends.
            let _ = launch.save();
        }
        tokio::time::sleep(SAMPLE_EVERY).await;
    }
}
