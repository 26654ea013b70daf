//! What both benchmarks need: a run that never ends, and workers that answer at once.

use retouch_proto::config::{FilterRule, Preset, preset};
use retouch_proto::task::*;
use retouch_proto::worker::{Registration, Role};
use retouch_proto::{BlobAddress, BlobRef, ContentHash, RunConfig, WorkerId};

/// A run with so many groups in flight, and no end in sight.
pub(crate) fn config(groups_per_iteration: u32) -> RunConfig {
    let mut config = preset(Preset::Tiny);
    config.iterations = 10_000_000;
    config.rollout.groups_per_iteration = groups_per_iteration;
    config.rollout.group_size = 12;
    config.filter.rule = FilterRule::None;
    config.filter.ban = false;
    config.learner.ranks = 1;
    config.learner.checkpoint_every = 1_000_000;
    config
}

/// A worker's registration.
pub(crate) fn registration(role: Role, number: usize) -> Registration {
    Registration {
        worker: WorkerId::new(format!("{role}-{number}")).expect("a valid name"),
        role,
        slots: 1,
        device: "cpu".into(),
        blob_address: BlobAddress::Grpc("127.0.0.1:1".into()),
        collective_address: (role == Role::Learner)
            .then(|| "127.0.0.1:2".parse().expect("an address")),
        holds: Vec::new(),
        running: Vec::new(),
    }
}

/// Does a task in no time.
pub(crate) fn outcome(task: &Task) -> TaskOutcome {
    match task {
        Task::Rollout(task) => TaskOutcome::Rollout(rollout(task)),
        Task::Score(task) => TaskOutcome::Score(score(task)),
        Task::Train(task) => TaskOutcome::Train(train(task)),
        Task::Mint(_) => unreachable!("the ranks of benchmarks meet over sockets"),
    }
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
    let reward = |edit: &ContentHash| f64::from(edit.0[0]) / 255.0;
    let scores = edits.iter().map(|edit| SampleScore {
        reward: reward(edit),
        terms: Vec::new(),
    });
    ScoreResult {
        group: task.group,
        scores: scores.collect(),
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
