//! The run that the swarm works on, and its work in no time.

use std::path::Path;

use retouch_proto::config::{FilterRule, Preset, preset};
use retouch_proto::task::*;
use retouch_proto::worker::{Registration, Role, RunningTask};
use retouch_proto::{BlobAddress, BlobRef, ContentHash, LeaseId, RunConfig, WorkerId};

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

/// What comes of a task.
pub(crate) fn outcome(task: &Task) -> TaskOutcome {
    match task {
        Task::Rollout(task) => TaskOutcome::Rollout(rollout(task)),
        Task::Score(task) => TaskOutcome::Score(score(task)),
        Task::Train(task) => TaskOutcome::Train(train(task)),
        Task::Mint(_) => unreachable!("the swarm's rank meets others over sockets"),
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

fn rollout(task: &RolloutTask) -> RolloutResult {
    let named = |what: u32| blob(&[what, task.group.iteration.0, task.group.index]);
    RolloutResult {
        group: task.group,
        version: task.version.as_ref().map(|version| version.hash),
        x0: named(0),
        condition: named(1),
        source_png: named(2),
        edits_png: (3..3 + task.group_size).map(named).collect(),
        timings: RolloutTimings::default(),
    }
}

fn score(task: &ScoreTask) -> ScoreResult {
    let edits: Vec<ContentHash> = task.edits_png.iter().map(|edit| edit.hash).collect();
    let score = |edit: &ContentHash| SampleScore {
        reward: f64::from(edit.0[0]) / 255.0,
        terms: Vec::new(),
    };
    ScoreResult {
        group: task.group,
        scores: edits.iter().map(score).collect(),
        edits,
        scoring_s: 0.0,
    }
}

fn train(task: &TrainTask) -> TrainResult {
    TrainResult {
        iteration: task.iteration,
        epoch: task.collective.epoch,
        state: blob(&[100, task.iteration.0]),
        version: blob(&[101, task.iteration.0]),
        ema_adapter: task.checkpoint.then(|| ContentHash::of(b"ema")),
        metrics: TrainMetrics::default(),
    }
}

fn blob(parts: &[u32]) -> BlobRef {
    let bytes: Vec<u8> = parts.iter().flat_map(|part| part.to_le_bytes()).collect();
    BlobRef {
        hash: ContentHash::of(&bytes),
        size_bytes: 1 << 20,
        owners: Vec::new(),
    }
}
