//! The run that the swarm works on, and what its workers say of themselves.

use std::path::Path;

use retouch_proto::config::{FilterRule, Preset, preset};
use retouch_proto::task::{RolloutResult, Task};
use retouch_proto::worker::{Registration, Role, RunningTask};
use retouch_proto::{BlobAddress, ContentHash, LeaseId, RunConfig, WorkerId};

/// A run without end, whose next iterations are open while one is finished.
pub(crate) fn config(dataset: &Path) -> RunConfig {
    let mut config = preset(Preset::Tiny);
    config.iterations = 1_000_000;
    config.dataset.path = dataset.display().to_string();
    config.rollout.groups_per_iteration = 1_024;
    config.rollout.group_size = 12;
    config.rollout.staleness_max = 8;
    config.filter.rule = FilterRule::None;
    config.filter.ban = false;
    config.learner.ranks = 1;
    config.learner.checkpoint_every = 1_000_000;
    config
}

/// A dataset of this many rows.
pub(crate) fn write_dataset(folder: &Path, rows: usize) -> std::io::Result<()> {
    std::fs::create_dir_all(folder)?;
    std::fs::write(folder.join("a.png"), "")?;
    let row =
        "{\"prompt\": \"make it blue\", \"image\": \"a.png\", \"requirement\": \"it is blue\"}\n";
    std::fs::write(folder.join("train_metadata.jsonl"), row.repeat(rows))
}

/// A worker's registration; it goes on with what it runs.
pub(crate) fn registration(
    worker: &WorkerId,
    role: Role,
    running: Option<(LeaseId, &Task)>,
    holds: Vec<ContentHash>,
) -> Registration {
    let running = running.map(|(lease, task)| RunningTask {
        lease,
        kind: role,
        group: match task {
            Task::Rollout(task) => Some(task.group),
            Task::Score(task) => Some(task.group),
            Task::Train(_) | Task::Mint(_) => None,
        },
    });
    Registration {
        worker: worker.clone(),
        role,
        slots: 1,
        device: "swarm".into(),
        blob_address: BlobAddress::Grpc("127.0.0.1:1".into()),
        collective_address: (role == Role::Learner).then(|| ([127, 0, 0, 1], 2).into()),
        holds,
        running: running.into_iter().collect(),
    }
}

/// What a rollout leaves behind.
pub(crate) fn blobs(result: &RolloutResult) -> impl Iterator<Item = ContentHash> + '_ {
    let latents = [&result.x0, &result.condition, &result.source_png];
    latents
        .into_iter()
        .chain(&result.edits_png)
        .map(|blob| blob.hash)
}
