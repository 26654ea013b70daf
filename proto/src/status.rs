//! What `status` shows: one view, the schema of `status --json`.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::blob::BlobAddress;
use crate::ids::{Generation, GroupId, Iteration, RunId, WorkerId};
use crate::task::TrainMetrics;
use crate::worker::{Role, WorkerState};

/// Where a run is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RunState {
    /// Work is given out.
    Running,
    /// No work is given out until `resume`.
    Paused,
    /// The open iteration is the last one.
    Draining,
    /// Open work is abandoned; the last committed state is being checkpointed.
    Stopping,
    /// All iterations are done, or the run was drained or stopped.
    Finished,
    /// The run cannot go on.
    Failed,
}

impl RunState {
    /// Every state.
    pub const ALL: [Self; 6] = [
        Self::Running,
        Self::Paused,
        Self::Draining,
        Self::Stopping,
        Self::Finished,
        Self::Failed,
    ];

    /// The state's name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Draining => "draining",
            Self::Stopping => "stopping",
            Self::Finished => "finished",
            Self::Failed => "failed",
        }
    }

    /// The state of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == name)
    }

    /// Whether the run does no more work.
    pub fn is_over(self) -> bool {
        matches!(self, Self::Finished | Self::Failed)
    }
}

impl fmt::Display for RunState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// What a command did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Controlled {
    /// The run's state after it.
    pub state: RunState,
    /// What was done, for people.
    pub message: String,
}

/// The whole view.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunStatus {
    /// The run's name.
    pub run: RunId,
    /// Where it is in its life.
    pub state: RunState,
    /// Why it failed, if it did.
    pub reason: Option<String>,
    /// The oldest iteration that is not committed.
    pub iteration: Iteration,
    /// The last committed iteration.
    pub committed: Iteration,
    /// The last iteration with a durable checkpoint; 0 is the start.
    pub checkpointed: Iteration,
    /// Whether a checkpoint was asked for and is not made yet.
    #[serde(default)]
    pub checkpoint_pending: bool,
    /// How many iterations the run has.
    pub iterations: u32,
    /// What the open iteration waits for.
    pub stage: Stage,
    /// The open iteration's groups by state.
    pub groups: GroupCounts,
    /// Everyone who has registered.
    pub workers: Vec<WorkerStatus>,
    /// The version that samples now; absent is the bare base model.
    pub version: Option<String>,
    /// Throughput.
    pub rates: Rates,
    /// Committed iterations, oldest first, the last hundred at most.
    pub history: Vec<IterationMetrics>,
    /// Totals since the run began.
    pub totals: Totals,
    /// Estimated time to the end.
    pub eta_s: Option<f64>,
    /// Time since this coordinator started.
    pub uptime_s: f64,
    /// Why nothing moves, if nothing does.
    pub stalls: Vec<Stall>,
}

/// What an iteration waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// Groups are sampled and scored.
    Collecting,
    /// Learners train.
    Training,
    /// A checkpoint is written without training.
    Checkpointing,
    /// Nothing: the run is over.
    Idle,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Collecting => "collecting",
            Self::Training => "training",
            Self::Checkpointing => "checkpointing",
            Self::Idle => "idle",
        })
    }
}

/// Groups by state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupCounts {
    /// All groups, refill rounds included.
    pub total: u32,
    /// Waiting for a rollout worker.
    pub queued: u32,
    /// Being sampled.
    pub sampling: u32,
    /// Waiting for a reward worker.
    pub sampled: u32,
    /// Being scored.
    pub scoring: u32,
    /// Scored.
    pub scored: u32,
    /// Given up, with a recorded reason.
    pub dropped: u32,
}

/// A worker as the coordinator sees it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WorkerStatus {
    /// Its name.
    pub id: WorkerId,
    /// What it is for.
    pub role: Role,
    /// Which life.
    pub generation: Generation,
    /// Whether it is there.
    pub state: Presence,
    /// The device, for people.
    pub device: String,
    /// Where it serves its blobs, while it lives.
    #[serde(default)]
    pub blobs: Option<BlobAddress>,
    /// What it sampled with last (rollout workers that have had work).
    #[serde(default)]
    pub policy: Option<PolicyStatus>,
    /// Tasks it can run at a time.
    pub slots: u32,
    /// Tasks it runs.
    pub busy: u32,
    /// The groups it works on.
    pub groups: Vec<GroupId>,
    /// Time since its last report.
    pub last_seen_ms: u64,
    /// Tasks done in this generation.
    pub done: u64,
    /// Tasks failed in this generation.
    pub failed: u64,
}

/// A policy that samples.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyStatus {
    /// The iteration that published it; 0 is what the run starts from.
    pub iteration: Iteration,
    /// Its adapter's hash; absent is the bare base model.
    pub version: Option<String>,
}

/// Whether a worker is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Presence {
    /// Alive, reading weights.
    Loading,
    /// Alive, takes work.
    Ready,
    /// Alive, takes no more work.
    Leaving,
    /// Missed its heartbeats.
    Lost,
    /// Went because a person wanted it.
    Left,
}

impl From<WorkerState> for Presence {
    fn from(state: WorkerState) -> Self {
        match state {
            WorkerState::Loading => Self::Loading,
            WorkerState::Ready => Self::Ready,
            WorkerState::Leaving => Self::Leaving,
        }
    }
}

impl fmt::Display for Presence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Loading => "loading",
            Self::Ready => "ready",
            Self::Leaving => "leaving",
            Self::Lost => "lost",
            Self::Left => "left",
        })
    }
}

/// Throughput over the last minute or so.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Rates {
    /// Candidates sampled per second.
    pub samples_per_s: f64,
    /// Candidates scored per second.
    pub scores_per_s: f64,
    /// Iterations committed per hour.
    pub iterations_per_h: f64,
}

/// Counters since the run began; work that was rewound counts again when it is redone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Totals {
    /// Groups sampled.
    pub groups_sampled: u64,
    /// Groups scored.
    pub groups_scored: u64,
    /// Groups that were trained on.
    pub groups_kept: u64,
    /// Groups left out by the filter.
    pub groups_filtered: u64,
    /// Groups given up after failures.
    pub groups_dropped: u64,
    /// Groups made again because their blobs were lost.
    pub groups_remade: u64,
    /// Failed attempts.
    pub attempts_failed: u64,
    /// Leases lost with their worker.
    pub leases_lost: u64,
    /// Leases that ran out.
    pub leases_expired: u64,
    /// Iterations that trained with fewer ranks than configured.
    pub resharded: u64,
    /// Iterations taken back by a rewind.
    pub rewound: u64,
    /// Iterations in which the filter kept nothing.
    pub empty_iterations: u64,
}

/// A committed iteration in numbers.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct IterationMetrics {
    /// The iteration.
    pub iteration: Iteration,
    /// Groups drawn, refill rounds included.
    pub groups: u32,
    /// Groups with scores.
    pub scored: u32,
    /// Groups trained on.
    pub kept: u32,
    /// Groups left out by the filter.
    pub filtered: u32,
    /// Groups given up after failures.
    pub dropped: u32,
    /// Pairs newly put on the ban list.
    pub banned: u32,
    /// Pairs on the ban list.
    pub banned_total: u32,
    /// Refill rounds.
    pub refill_rounds: u32,
    /// Candidates trained on.
    pub samples_trained: u32,
    /// Mean of all rewards.
    pub reward_mean: f64,
    /// Population standard deviation of all rewards.
    pub reward_std: f64,
    /// Mean over groups of the group's standard deviation.
    pub reward_std_mean: f64,
    /// Share of groups whose rewards are all equal.
    pub zero_std_ratio: f64,
    /// Share of scored groups left out by the filter.
    pub filter_rate: f64,
    /// Mean over groups of the mean of the group's best 100, 75, 50, 25, 10 %.
    pub reward_top: BTreeMap<String, f64>,
    /// Mean over samples and terms of the judge's entropy, watched terms aside.
    pub entropy_mean: f64,
    /// Mean score of each reward term, watched ones included, over the samples that it has scored.
    pub reward_terms: BTreeMap<String, f64>,
    /// The learner's diagnostics; absent when nothing was trained.
    pub train: Option<TrainMetrics>,
    /// Seconds per stage.
    pub stage_s: StageSeconds,
    /// Whether it trained with fewer ranks than configured.
    pub resharded: bool,
    /// The version after it.
    pub version: Option<String>,
    /// The EMA adapter, when it was checkpointed.
    pub ema_adapter: Option<String>,
}

/// Seconds per stage of an iteration.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct StageSeconds {
    /// Workers' time in rollouts, summed.
    pub rollout: f64,
    /// Workers' time in scoring, summed.
    pub score: f64,
    /// From the first draw to the seal.
    pub collect: f64,
    /// From the seal to the commit.
    pub train: f64,
    /// From the first draw to the commit.
    pub wall: f64,
}

/// Why nothing moves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stall {
    /// The cause by name, with what would end it.
    pub cause: String,
    /// For how long.
    pub for_ms: u64,
}

/// Something worth telling.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Counts the run's events from 1.
    pub sequence: u64,
    /// When it happened.
    pub time_unix_ms: u64,
    /// The oldest open iteration at the time.
    pub iteration: Iteration,
    /// What happened.
    pub kind: EventKind,
    /// In words.
    pub message: String,
}

/// Kinds of events.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[allow(missing_docs)]
pub enum EventKind {
    WorkerJoined,
    WorkerLost,
    WorkerLeft,
    GroupDropped,
    GroupRemade,
    AttemptFailed,
    TermFailed,
    LeaseExpired,
    IterationOpened,
    IterationSealed,
    IterationCommitted,
    Resharded,
    Rewound,
    Mended,
    RanksDisagree,
    Stalled,
    Alarm,
    Control,
    Finished,
    Failed,
}

impl EventKind {
    /// Every kind.
    pub const ALL: [Self; 20] = [
        Self::WorkerJoined,
        Self::WorkerLost,
        Self::WorkerLeft,
        Self::GroupDropped,
        Self::GroupRemade,
        Self::AttemptFailed,
        Self::TermFailed,
        Self::LeaseExpired,
        Self::IterationOpened,
        Self::IterationSealed,
        Self::IterationCommitted,
        Self::Resharded,
        Self::Rewound,
        Self::Mended,
        Self::RanksDisagree,
        Self::Stalled,
        Self::Alarm,
        Self::Control,
        Self::Finished,
        Self::Failed,
    ];

    /// The kind's name, as it is stored.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::WorkerJoined => "worker-joined",
            Self::WorkerLost => "worker-lost",
            Self::WorkerLeft => "worker-left",
            Self::GroupDropped => "group-dropped",
            Self::GroupRemade => "group-remade",
            Self::AttemptFailed => "attempt-failed",
            Self::TermFailed => "term-failed",
            Self::LeaseExpired => "lease-expired",
            Self::IterationOpened => "iteration-opened",
            Self::IterationSealed => "iteration-sealed",
            Self::IterationCommitted => "iteration-committed",
            Self::Resharded => "resharded",
            Self::Rewound => "rewound",
            Self::Mended => "mended",
            Self::RanksDisagree => "ranks-disagree",
            Self::Stalled => "stalled",
            Self::Alarm => "alarm",
            Self::Control => "control",
            Self::Finished => "finished",
            Self::Failed => "failed",
        }
    }

    /// The kind of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == name)
    }
}

impl fmt::Display for EventKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}
