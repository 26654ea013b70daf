//! The work of workers that answer at once: results as large as real ones, and nothing behind them.

use retouch_proto::task::*;
use retouch_proto::{BlobRef, ContentHash};

/// What comes of a task.
pub(crate) fn outcome(task: &Task) -> TaskOutcome {
    match task {
        Task::Rollout(task) => TaskOutcome::Rollout(rollout(task)),
        Task::Score(task) => TaskOutcome::Score(score(task)),
        Task::Train(task) => TaskOutcome::Train(train(task)),
        Task::Mint(_) => unreachable!("ranks meet over sockets here"),
    }
}

fn rollout(task: &RolloutTask) -> RolloutResult {
    let named = |what: u32| blob(&[what, task.group.iteration.0, task.group.index]);
    RolloutResult {
        group: task.group,
        version: task.version.as_ref().map(|version| version.hash),
        x0: named(0),
        condition: named(1),
        sources_png: vec![named(2)],
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
        unscored: Vec::new(),
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
