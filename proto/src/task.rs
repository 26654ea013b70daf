//! The work: what is asked for and what comes back.

use std::fmt;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::blob::{BlobRef, ContentHash};
use crate::ids::{Epoch, GroupId, Iteration, LeaseId};
use crate::one_or_several;

/// One task given to one worker.
#[derive(Clone, Debug, PartialEq)]
pub struct Assignment {
    /// Names this assignment in results and cancellations.
    pub lease: LeaseId,
    /// The task is given to another worker when this much time has passed.
    pub lease_ms: u64,
    /// What to do.
    pub task: Task,
}

/// What a worker can be asked to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Task {
    /// Sample a group.
    Rollout(RolloutTask),
    /// Score a group.
    Score(ScoreTask),
    /// Train on a sealed iteration.
    Train(TrainTask),
    /// Make what the ranks of an epoch find each other by.
    Mint(MintTask),
}

/// Sample a group with the old policy. Candidate `k` starts from the noise of
/// `seed::derive(run_seed, RolloutNoise, group.iteration, group.index, k, 0)`.
#[derive(Clone, Debug, PartialEq)]
pub struct RolloutTask {
    /// The group to sample.
    pub group: GroupId,
    /// The instruction.
    pub prompt: String,
    /// What the judge looks for.
    pub requirement: String,
    /// The source images, relative to the dataset folder, in the order that the editor takes them.
    pub images: Vec<String>,
    /// The adapter to sample with; `None` is the bare base model.
    pub version: Option<BlobRef>,
    /// Number of candidates.
    pub group_size: u32,
}

/// A sampled group.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RolloutResult {
    /// The group that was sampled.
    pub group: GroupId,
    /// The adapter that sampled it (A6); `None` is the bare base model.
    pub version: Option<ContentHash>,
    /// Clean latents, safetensors with key `x0` of shape `[K, S, C]`, f32.
    pub x0: BlobRef,
    /// The encoded condition.
    pub condition: BlobRef,
    /// The source images as the model saw them.
    #[serde(rename = "source_png", with = "one_or_several")]
    pub sources_png: Vec<BlobRef>,
    /// The candidates, decoded, in sample order.
    pub edits_png: Vec<BlobRef>,
    /// Where the time went.
    pub timings: RolloutTimings,
}

/// Seconds per stage of a rollout.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RolloutTimings {
    /// Text and source image encoders.
    pub encode_s: f64,
    /// The solver's steps.
    pub sample_s: f64,
    /// Latents to PNG.
    pub decode_s: f64,
}

/// Score a group's candidates.
#[derive(Clone, Debug, PartialEq)]
pub struct ScoreTask {
    /// The group to score.
    pub group: GroupId,
    /// The instruction.
    pub prompt: String,
    /// What the judge looks for.
    pub requirement: String,
    /// The source images.
    pub sources_png: Vec<BlobRef>,
    /// The candidates, in sample order.
    pub edits_png: Vec<BlobRef>,
}

/// The scores of a group.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ScoreResult {
    /// The group that was scored.
    pub group: GroupId,
    /// The images that were scored: the task's `edits_png` hashes.
    pub edits: Vec<ContentHash>,
    /// One per candidate, in sample order.
    pub scores: Vec<SampleScore>,
    /// Watched terms that gave no scores; those of weight above 0 fail the whole task instead.
    pub unscored: Vec<TermFailure>,
    /// Seconds it took, fetching included.
    pub scoring_s: f64,
}

/// Why a reward term of weight 0 has no scores for a group (A5).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TermFailure {
    /// The term's name in the config.
    pub term: String,
    /// What went wrong, for people.
    pub reason: String,
}

/// A candidate's reward and what it is made of.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SampleScore {
    /// Weighted mean of the terms of weight above 0, in 0..1.
    pub reward: f64,
    /// One per reward term, in the config's order; a watched term that failed is absent.
    pub terms: Vec<TermScore>,
}

/// One reward term's opinion.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TermScore {
    /// The term's name in the config.
    pub name: String,
    /// Its score, in 0..1.
    pub value: f64,
    /// p(0), ..., p(5).
    pub probabilities: [f64; 6],
    /// Entropy of the probabilities, in nats.
    pub entropy: f64,
}

/// Train on a sealed iteration, or with no groups only write a checkpoint of `state`.
#[derive(Clone, Debug, PartialEq)]
pub struct TrainTask {
    /// The iteration this makes.
    pub iteration: Iteration,
    /// The ranks that do it together.
    pub collective: CollectiveEpoch,
    /// The state to start from; `None` is the initial state, derived from the seed.
    pub state: Option<BlobRef>,
    /// The policies that made the samples, each once; those of bare-base samples are absent.
    pub versions: Vec<BlobRef>,
    /// The kept groups in group-id order. Empty: state and version stay as they are.
    pub groups: Vec<TrainGroup>,
    /// Rank 0 writes `checkpoints/<iteration>/state.safetensors` and `version.safetensors` (the
    /// blobs themselves, byte for byte) and `adapters/<hash>/` before it answers.
    pub checkpoint: bool,
    /// What rank 0 writes besides as `policy-<iteration>.safetensors`: the policies before this iteration's with which
    /// later ones are sampled (`rollout.staleness_max` of them at most), oldest first.
    pub earlier: Vec<EarlierPolicy>,
}

/// A policy that later iterations are still to be sampled with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EarlierPolicy {
    /// The iteration that published it.
    pub iteration: Iteration,
    /// Its adapter.
    pub adapter: BlobRef,
}

/// One membership of the learners' collective, as seen by one rank.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CollectiveEpoch {
    /// Names the membership; a message of another epoch is not for this one.
    pub epoch: Epoch,
    /// The receiver's rank.
    pub rank: u32,
    /// Number of ranks; divides `gradient_shards`.
    pub world: u32,
    /// The collective addresses in rank order.
    pub peers: Vec<SocketAddr>,
    /// What rank 0 minted for the epoch; `None` where ranks meet over sockets alone.
    pub unique_id: Option<UniqueId>,
}

/// By which the ranks of one NCCL communicator find each other: opaque, good for one epoch.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct UniqueId(pub [u8; Self::BYTES]);

impl UniqueId {
    /// Its length, which is NCCL's.
    pub const BYTES: usize = 128;
}

impl fmt::Debug for UniqueId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, ..] = self.0;
        write!(f, "UniqueId({a:02x}{b:02x}{c:02x}{d:02x}..)")
    }
}

/// Make the [`UniqueId`] of an epoch, as its rank 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MintTask {
    /// The epoch it is for.
    pub epoch: Epoch,
}

/// What rank 0 made for an epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MintResult {
    /// The epoch it is for.
    pub epoch: Epoch,
    /// What all its ranks are to be told.
    pub unique_id: UniqueId,
}

/// A group to train on.
#[derive(Clone, Debug, PartialEq)]
pub struct TrainGroup {
    /// The group.
    pub group: GroupId,
    /// Clean latents `[K, S, C]`.
    pub x0: BlobRef,
    /// The encoded condition.
    pub condition: BlobRef,
    /// The policy that made the samples; `None` is the bare base model.
    pub version: Option<ContentHash>,
    /// One per candidate, in sample order.
    pub advantages: Vec<f64>,
}

/// What a rank made of a training task.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrainResult {
    /// The iteration.
    pub iteration: Iteration,
    /// The epoch it was made in.
    pub epoch: Epoch,
    /// The learner's whole state afterwards, the same bytes on every rank.
    pub state: BlobRef,
    /// The old policy afterwards: what samples next.
    pub version: BlobRef,
    /// The exported EMA adapter, if a checkpoint was asked for.
    pub ema_adapter: Option<ContentHash>,
    /// Diagnostics.
    pub metrics: TrainMetrics,
}

/// Diagnostics of a training step, under the names that users of the method know.
///
/// [`METRICS`](crate::metrics::METRICS) says what each is and its unit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TrainMetrics {
    /// Mean policy loss.
    pub policy_loss: f64,
    /// Distance of v_theta from v_ref.
    pub kl_div: f64,
    /// Distance of v_old from v_ref.
    pub old_kl_div: f64,
    /// Distance of v_theta from v_old.
    pub old_deviate: f64,
    /// Its largest element.
    pub old_deviate_max: f64,
    /// Size of the clean latents.
    pub x0_norm: f64,
    /// Their largest element.
    pub x0_norm_max: f64,
    /// Gradient norm before clipping.
    pub grad_norm: f64,
    /// The optimizer's learning rate.
    pub learning_rate: f64,
    /// Samples trained on.
    pub samples: u64,
    /// (sample, timestep) pairs trained on.
    pub pairs: u64,
    /// Seconds spent waiting for blobs.
    pub fetch_s: f64,
    /// Seconds of noise and batches.
    pub prepare_s: f64,
    /// Seconds of the old policy's forwards.
    pub v_old_s: f64,
    /// Seconds of the reference's forwards.
    pub v_ref_s: f64,
    /// Seconds of the trained policy's forwards and the loss.
    pub forward_s: f64,
    /// Seconds of backwards.
    pub backward_s: f64,
    /// Seconds of summing gradients over ranks.
    pub all_reduce_s: f64,
    /// Seconds of the optimizer, EMA and old policy.
    pub optimizer_s: f64,
    /// Seconds of writing the checkpoint.
    pub checkpoint_s: f64,
    /// Seconds of making state and version into blobs that others can fetch.
    pub publish_s: f64,
}

/// A task that could not be done. Never turned into a score (A5).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskFailure {
    /// What went wrong, for people.
    pub reason: String,
    /// Blobs of the task that no owner had; they are made again.
    pub lost_blobs: Vec<ContentHash>,
    /// Whether another attempt could go better (a broken source image never does).
    pub retryable: bool,
    /// Whether it failed for want of space on a disk: that says nothing about the task, so it is no failed attempt.
    #[serde(default)]
    pub disk_full: bool,
}

impl TaskFailure {
    /// One that another attempt may not meet.
    pub fn retryable(reason: impl ToString) -> Self {
        Self {
            reason: reason.to_string(),
            lost_blobs: Vec::new(),
            retryable: true,
            disk_full: false,
        }
    }

    /// One that goes well once there is space on the worker's disk.
    pub fn disk_full(reason: impl ToString) -> Self {
        Self {
            disk_full: true,
            ..Self::retryable(reason)
        }
    }

    /// One that every attempt would meet.
    pub fn lasting(reason: impl ToString) -> Self {
        Self {
            retryable: false,
            ..Self::retryable(reason)
        }
    }
}

/// How an assignment ended.
#[derive(Clone, Debug, PartialEq)]
pub struct TaskResult {
    /// The assignment.
    pub lease: LeaseId,
    /// What came of it.
    pub outcome: TaskOutcome,
}

/// What came of a task.
#[derive(Clone, Debug, PartialEq)]
pub enum TaskOutcome {
    /// A sampled group.
    Rollout(RolloutResult),
    /// A scored group.
    Score(ScoreResult),
    /// A training step.
    Train(TrainResult),
    /// An epoch's unique id.
    Mint(MintResult),
    /// None of these.
    Failed(TaskFailure),
}

/// A group to be scored directly, with its images.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InlineGroup {
    /// The instruction.
    pub prompt: String,
    /// What the judge looks for.
    pub requirement: String,
    /// The source images.
    pub sources_png: Vec<bytes::Bytes>,
    /// The candidates.
    pub edits_png: Vec<bytes::Bytes>,
}
