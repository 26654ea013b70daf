//! Tasks and their results.

use super::{
    ConvertError, Result, all, finite, hash, hash_bytes, optional_hash, optional_hash_bytes,
    parsed, required, text,
};
use crate::blob::BlobRef;
use crate::ids::{Epoch, Iteration, LeaseId};
use crate::limits::{
    ADDRESS_BYTES_MAX, GROUP_SIZE_MAX, GROUPS_MAX, HASHES_MAX, NAME_BYTES_MAX, PROMPT_BYTES_MAX,
    RANKS_MAX, REASON_BYTES_MAX, SOURCES_MAX, STALENESS_MAX, TERMS_MAX,
};
use crate::pb;
use crate::task::*;

impl From<Assignment> for pb::Assignment {
    fn from(assignment: Assignment) -> Self {
        let task = match assignment.task {
            Task::Rollout(task) => pb::assignment::Task::Rollout(task.into()),
            Task::Score(task) => pb::assignment::Task::Score(task.into()),
            Task::Train(task) => pb::assignment::Task::Train(task.into()),
            Task::Mint(task) => pb::assignment::Task::Mint(pb::MintTask {
                epoch: task.epoch.0,
            }),
        };
        Self {
            lease: assignment.lease.0,
            lease_ms: assignment.lease_ms,
            task: Some(task),
        }
    }
}

impl TryFrom<pb::Assignment> for Assignment {
    type Error = ConvertError;

    fn try_from(assignment: pb::Assignment) -> Result<Self> {
        let task = match required("assignment.task", assignment.task)? {
            pb::assignment::Task::Rollout(task) => Task::Rollout(task.try_into()?),
            pb::assignment::Task::Score(task) => Task::Score(task.try_into()?),
            pb::assignment::Task::Train(task) => Task::Train(task.try_into()?),
            pb::assignment::Task::Mint(task) => Task::Mint(MintTask {
                epoch: Epoch(task.epoch),
            }),
        };
        Ok(Self {
            lease: LeaseId(assignment.lease),
            lease_ms: assignment.lease_ms,
            task,
        })
    }
}

impl From<RolloutTask> for pb::RolloutTask {
    fn from(task: RolloutTask) -> Self {
        Self {
            group: Some(task.group.into()),
            prompt: task.prompt,
            requirement: task.requirement,
            images: task.images,
            version: task.version.map(Into::into),
            group_size: task.group_size,
        }
    }
}

impl TryFrom<pb::RolloutTask> for RolloutTask {
    type Error = ConvertError;

    fn try_from(task: pb::RolloutTask) -> Result<Self> {
        Ok(Self {
            group: required("rollout.group", task.group)?.into(),
            prompt: text("rollout.prompt", task.prompt, PROMPT_BYTES_MAX)?,
            requirement: text("rollout.requirement", task.requirement, PROMPT_BYTES_MAX)?,
            images: sources("rollout.images", task.images, |image| {
                text("rollout.images", image, ADDRESS_BYTES_MAX)
            })?,
            version: task.version.map(TryInto::try_into).transpose()?,
            group_size: group_size(task.group_size)?,
        })
    }
}

fn group_size(size: u32) -> Result<u32> {
    if (1..=GROUP_SIZE_MAX as u32).contains(&size) {
        return Ok(size);
    }
    Err(ConvertError::new(
        "rollout.group_size",
        format!("{size} is not in 1..={GROUP_SIZE_MAX}"),
    ))
}

impl From<RolloutResult> for pb::RolloutResult {
    fn from(result: RolloutResult) -> Self {
        let timings = result.timings;
        Self {
            group: Some(result.group.into()),
            version: optional_hash_bytes(&result.version),
            x0: Some(result.x0.into()),
            condition: Some(result.condition.into()),
            sources_png: result.sources_png.into_iter().map(Into::into).collect(),
            edits_png: result.edits_png.into_iter().map(Into::into).collect(),
            timings: Some(pb::RolloutTimings {
                encode_s: timings.encode_s,
                sample_s: timings.sample_s,
                decode_s: timings.decode_s,
            }),
        }
    }
}

impl TryFrom<pb::RolloutResult> for RolloutResult {
    type Error = ConvertError;

    fn try_from(result: pb::RolloutResult) -> Result<Self> {
        let timings = result.timings.unwrap_or_default();
        Ok(Self {
            group: required("rollout.group", result.group)?.into(),
            version: optional_hash("rollout.version", &result.version)?,
            x0: blob("rollout.x0", result.x0)?,
            condition: blob("rollout.condition", result.condition)?,
            sources_png: sources("rollout.sources_png", result.sources_png, TryInto::try_into)?,
            edits_png: blobs("rollout.edits_png", result.edits_png, GROUP_SIZE_MAX)?,
            timings: RolloutTimings {
                encode_s: finite("rollout.encode_s", timings.encode_s)?,
                sample_s: finite("rollout.sample_s", timings.sample_s)?,
                decode_s: finite("rollout.decode_s", timings.decode_s)?,
            },
        })
    }
}

fn blob(field: &'static str, blob: Option<pb::BlobRef>) -> Result<BlobRef> {
    required(field, blob)?.try_into()
}

fn blobs(field: &'static str, blobs: Vec<pb::BlobRef>, len_max: usize) -> Result<Vec<BlobRef>> {
    all(field, blobs, len_max, TryInto::try_into)
}

/// What an edit is made of, of which there is at least one.
pub(super) fn sources<A, B>(
    field: &'static str,
    sources: Vec<A>,
    convert: impl FnMut(A) -> Result<B>,
) -> Result<Vec<B>> {
    if sources.is_empty() {
        return Err(ConvertError::new(field, "is empty".to_owned()));
    }
    all(field, sources, SOURCES_MAX, convert)
}

impl From<ScoreTask> for pb::ScoreTask {
    fn from(task: ScoreTask) -> Self {
        Self {
            group: Some(task.group.into()),
            prompt: task.prompt,
            requirement: task.requirement,
            sources_png: task.sources_png.into_iter().map(Into::into).collect(),
            edits_png: task.edits_png.into_iter().map(Into::into).collect(),
        }
    }
}

impl TryFrom<pb::ScoreTask> for ScoreTask {
    type Error = ConvertError;

    fn try_from(task: pb::ScoreTask) -> Result<Self> {
        Ok(Self {
            group: required("score.group", task.group)?.into(),
            prompt: text("score.prompt", task.prompt, PROMPT_BYTES_MAX)?,
            requirement: text("score.requirement", task.requirement, PROMPT_BYTES_MAX)?,
            sources_png: sources("score.sources_png", task.sources_png, TryInto::try_into)?,
            edits_png: blobs("score.edits_png", task.edits_png, GROUP_SIZE_MAX)?,
        })
    }
}

impl From<ScoreResult> for pb::ScoreResult {
    fn from(result: ScoreResult) -> Self {
        Self {
            group: Some(result.group.into()),
            edits: result.edits.iter().map(hash_bytes).collect(),
            scores: result.scores.into_iter().map(Into::into).collect(),
            scoring_s: result.scoring_s,
            unscored: result.unscored.into_iter().map(Into::into).collect(),
        }
    }
}

impl TryFrom<pb::ScoreResult> for ScoreResult {
    type Error = ConvertError;

    fn try_from(result: pb::ScoreResult) -> Result<Self> {
        Ok(Self {
            group: required("score.group", result.group)?.into(),
            edits: all("score.edits", result.edits, GROUP_SIZE_MAX, |h| {
                hash("score.edits", &h)
            })?,
            scores: all(
                "score.scores",
                result.scores,
                GROUP_SIZE_MAX,
                TryInto::try_into,
            )?,
            scoring_s: finite("score.scoring_s", result.scoring_s)?,
            unscored: all(
                "score.unscored",
                result.unscored,
                TERMS_MAX,
                TryInto::try_into,
            )?,
        })
    }
}

impl From<TermFailure> for pb::TermFailure {
    fn from(failure: TermFailure) -> Self {
        Self {
            term: failure.term,
            reason: cut(failure.reason),
        }
    }
}

impl TryFrom<pb::TermFailure> for TermFailure {
    type Error = ConvertError;

    fn try_from(failure: pb::TermFailure) -> Result<Self> {
        Ok(Self {
            term: text("score.term", failure.term, NAME_BYTES_MAX)?,
            reason: text("score.reason", failure.reason, REASON_BYTES_MAX)?,
        })
    }
}

impl From<SampleScore> for pb::SampleScore {
    fn from(score: SampleScore) -> Self {
        Self {
            reward: score.reward,
            terms: score.terms.into_iter().map(Into::into).collect(),
        }
    }
}

impl TryFrom<pb::SampleScore> for SampleScore {
    type Error = ConvertError;

    fn try_from(score: pb::SampleScore) -> Result<Self> {
        Ok(Self {
            reward: unit("score.reward", score.reward)?,
            terms: all("score.terms", score.terms, TERMS_MAX, TryInto::try_into)?,
        })
    }
}

/// A5: what is not a reward is an error, never a number that looks like one.
fn unit(field: &'static str, value: f64) -> Result<f64> {
    if (0.0..=1.0).contains(&value) {
        return Ok(value);
    }
    Err(ConvertError::new(field, format!("{value} is not in 0..=1")))
}

impl From<TermScore> for pb::TermScore {
    fn from(term: TermScore) -> Self {
        Self {
            name: term.name,
            value: term.value,
            probabilities: term.probabilities.to_vec(),
            entropy: term.entropy,
        }
    }
}

impl TryFrom<pb::TermScore> for TermScore {
    type Error = ConvertError;

    fn try_from(term: pb::TermScore) -> Result<Self> {
        let probabilities: [f64; 6] =
            term.probabilities.try_into().map_err(|given: Vec<f64>| {
                let problem = format!("{} values, there are 6 digits", given.len());
                ConvertError::new("score.probabilities", problem)
            })?;
        for p in probabilities {
            finite("score.probabilities", p)?;
        }
        Ok(Self {
            name: text("score.term", term.name, NAME_BYTES_MAX)?,
            value: unit("score.value", term.value)?,
            probabilities,
            entropy: finite("score.entropy", term.entropy)?,
        })
    }
}

impl From<TrainTask> for pb::TrainTask {
    fn from(task: TrainTask) -> Self {
        let collective = task.collective;
        Self {
            iteration: task.iteration.0,
            collective: Some(pb::CollectiveEpoch {
                epoch: collective.epoch.0,
                rank: collective.rank,
                world: collective.world,
                peers: collective.peers.iter().map(ToString::to_string).collect(),
                unique_id: collective.unique_id.map_or(Vec::new(), |id| id.0.to_vec()),
            }),
            state: task.state.map(Into::into),
            versions: task.versions.into_iter().map(Into::into).collect(),
            groups: task.groups.into_iter().map(Into::into).collect(),
            checkpoint: task.checkpoint,
            earlier: task.earlier.into_iter().map(Into::into).collect(),
        }
    }
}

impl TryFrom<pb::TrainTask> for TrainTask {
    type Error = ConvertError;

    fn try_from(task: pb::TrainTask) -> Result<Self> {
        Ok(Self {
            iteration: Iteration(task.iteration),
            collective: required("train.collective", task.collective)?.try_into()?,
            state: task.state.map(TryInto::try_into).transpose()?,
            versions: blobs("train.versions", task.versions, GROUPS_MAX)?,
            groups: all("train.groups", task.groups, GROUPS_MAX, TryInto::try_into)?,
            checkpoint: task.checkpoint,
            earlier: all(
                "train.earlier",
                task.earlier,
                STALENESS_MAX,
                TryInto::try_into,
            )?,
        })
    }
}

impl From<EarlierPolicy> for pb::EarlierPolicy {
    fn from(policy: EarlierPolicy) -> Self {
        Self {
            iteration: policy.iteration.0,
            adapter: Some(policy.adapter.into()),
        }
    }
}

impl TryFrom<pb::EarlierPolicy> for EarlierPolicy {
    type Error = ConvertError;

    fn try_from(policy: pb::EarlierPolicy) -> Result<Self> {
        Ok(Self {
            iteration: Iteration(policy.iteration),
            adapter: required("train.earlier.adapter", policy.adapter)?.try_into()?,
        })
    }
}

impl TryFrom<pb::CollectiveEpoch> for CollectiveEpoch {
    type Error = ConvertError;

    fn try_from(epoch: pb::CollectiveEpoch) -> Result<Self> {
        let peers = all("collective.peers", epoch.peers, RANKS_MAX, |peer| {
            parsed("collective.peers", &peer)
        })?;
        if peers.len() != epoch.world as usize || epoch.rank >= epoch.world {
            let problem = format!(
                "rank {} of {} with {} peers",
                epoch.rank,
                epoch.world,
                peers.len()
            );
            return Err(ConvertError::new("collective", problem));
        }
        Ok(Self {
            epoch: Epoch(epoch.epoch),
            rank: epoch.rank,
            world: epoch.world,
            peers,
            unique_id: match epoch.unique_id.is_empty() {
                true => None,
                false => Some(unique_id("collective.unique_id", epoch.unique_id)?),
            },
        })
    }
}

fn unique_id(field: &'static str, bytes: Vec<u8>) -> Result<UniqueId> {
    let bytes = bytes.try_into().map_err(|bytes: Vec<u8>| {
        let problem = format!("{} bytes, expected {}", bytes.len(), UniqueId::BYTES);
        ConvertError::new(field, problem)
    })?;
    Ok(UniqueId(bytes))
}

impl From<MintResult> for pb::MintResult {
    fn from(result: MintResult) -> Self {
        Self {
            epoch: result.epoch.0,
            unique_id: result.unique_id.0.to_vec(),
        }
    }
}

impl TryFrom<pb::MintResult> for MintResult {
    type Error = ConvertError;

    fn try_from(result: pb::MintResult) -> Result<Self> {
        Ok(Self {
            epoch: Epoch(result.epoch),
            unique_id: unique_id("mint.unique_id", result.unique_id)?,
        })
    }
}

impl From<TrainGroup> for pb::TrainGroup {
    fn from(group: TrainGroup) -> Self {
        Self {
            group: Some(group.group.into()),
            x0: Some(group.x0.into()),
            condition: Some(group.condition.into()),
            version: optional_hash_bytes(&group.version),
            advantages: group.advantages,
        }
    }
}

impl TryFrom<pb::TrainGroup> for TrainGroup {
    type Error = ConvertError;

    fn try_from(group: pb::TrainGroup) -> Result<Self> {
        let advantage = |value| finite("train.advantages", value);
        Ok(Self {
            group: required("train.group", group.group)?.into(),
            x0: blob("train.x0", group.x0)?,
            condition: blob("train.condition", group.condition)?,
            version: optional_hash("train.version", &group.version)?,
            advantages: all(
                "train.advantages",
                group.advantages,
                GROUP_SIZE_MAX,
                advantage,
            )?,
        })
    }
}

impl From<TrainResult> for pb::TrainResult {
    fn from(result: TrainResult) -> Self {
        Self {
            iteration: result.iteration.0,
            epoch: result.epoch.0,
            state: Some(result.state.into()),
            version: Some(result.version.into()),
            ema_adapter: optional_hash_bytes(&result.ema_adapter),
            metrics: Some(result.metrics.into()),
        }
    }
}

impl TryFrom<pb::TrainResult> for TrainResult {
    type Error = ConvertError;

    fn try_from(result: pb::TrainResult) -> Result<Self> {
        Ok(Self {
            iteration: Iteration(result.iteration),
            epoch: Epoch(result.epoch),
            state: blob("train.state", result.state)?,
            version: blob("train.version", result.version)?,
            ema_adapter: optional_hash("train.ema_adapter", &result.ema_adapter)?,
            metrics: required("train.metrics", result.metrics)?.into(),
        })
    }
}

/// Both directions at once, so that the diagnostics are listed once.
macro_rules! train_metrics {
    ($($field:ident),+) => {
        impl From<TrainMetrics> for pb::TrainMetrics {
            fn from(metrics: TrainMetrics) -> Self {
                Self { $($field: metrics.$field),+ }
            }
        }

        // Values that are not finite are let through: they say what went wrong.
        impl From<pb::TrainMetrics> for TrainMetrics {
            fn from(metrics: pb::TrainMetrics) -> Self {
                Self { $($field: metrics.$field),+ }
            }
        }
    };
}

train_metrics!(
    policy_loss,
    kl_div,
    old_kl_div,
    old_deviate,
    old_deviate_max,
    x0_norm,
    x0_norm_max,
    grad_norm,
    learning_rate,
    samples,
    pairs,
    fetch_s,
    prepare_s,
    v_old_s,
    v_ref_s,
    forward_s,
    backward_s,
    all_reduce_s,
    optimizer_s,
    checkpoint_s,
    publish_s
);

impl From<TaskFailure> for pb::TaskFailure {
    fn from(failure: TaskFailure) -> Self {
        Self {
            reason: cut(failure.reason),
            lost_blobs: failure.lost_blobs.iter().map(hash_bytes).collect(),
            retryable: failure.retryable,
            disk_full: failure.disk_full,
        }
    }
}

/// A long reason is cut, so that a failure can always be told.
fn cut(mut reason: String) -> String {
    reason.truncate(reason.floor_char_boundary(REASON_BYTES_MAX));
    reason
}

impl TryFrom<pb::TaskFailure> for TaskFailure {
    type Error = ConvertError;

    fn try_from(failure: pb::TaskFailure) -> Result<Self> {
        let lost = |bytes: Vec<u8>| hash("failure.lost_blobs", &bytes);
        Ok(Self {
            reason: text("failure.reason", failure.reason, REASON_BYTES_MAX)?,
            lost_blobs: all("failure.lost_blobs", failure.lost_blobs, HASHES_MAX, lost)?,
            retryable: failure.retryable,
            disk_full: failure.disk_full,
        })
    }
}

impl From<TaskResult> for pb::TaskResult {
    fn from(result: TaskResult) -> Self {
        use pb::task_result::Outcome;
        let outcome = match result.outcome {
            TaskOutcome::Rollout(result) => Outcome::Rollout(result.into()),
            TaskOutcome::Score(result) => Outcome::Score(result.into()),
            TaskOutcome::Train(result) => Outcome::Train(result.into()),
            TaskOutcome::Mint(result) => Outcome::Mint(result.into()),
            TaskOutcome::Failed(failure) => Outcome::Failure(failure.into()),
        };
        Self {
            lease: result.lease.0,
            outcome: Some(outcome),
        }
    }
}

impl TryFrom<pb::TaskResult> for TaskResult {
    type Error = ConvertError;

    fn try_from(result: pb::TaskResult) -> Result<Self> {
        use pb::task_result::Outcome;
        let outcome = match required("result.outcome", result.outcome)? {
            Outcome::Rollout(result) => result.try_into().map(TaskOutcome::Rollout),
            Outcome::Score(result) => result.try_into().map(TaskOutcome::Score),
            Outcome::Train(result) => result.try_into().map(TaskOutcome::Train),
            Outcome::Mint(result) => result.try_into().map(TaskOutcome::Mint),
            Outcome::Failure(failure) => failure.try_into().map(TaskOutcome::Failed),
        };
        Ok(Self {
            lease: LeaseId(result.lease),
            outcome: outcome.or_else(failed)?,
        })
    }
}

/// A5: a result that makes no sense is a failed attempt with that reason, so that one worker's
/// bad answer neither becomes a score nor makes all its later reports invalid.
fn failed(error: ConvertError) -> Result<TaskOutcome> {
    let reason = cut(format!("invalid result: {error}"));
    Ok(TaskOutcome::Failed(TaskFailure::retryable(reason)))
}
