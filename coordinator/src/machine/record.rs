//! What the machine writes down, and what it needs to go on from there (A8).

use retouch_proto::run_folder::CheckpointFile;
use retouch_proto::status::{Event, IterationMetrics, Totals};
use retouch_proto::task::{RolloutResult, ScoreResult};
use retouch_proto::{BlobRef, ContentHash, GroupId, Iteration, WorkerId};
use serde::{Deserialize, Serialize};

/// A blob without its owners: those are known only while they live.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Blob {
    /// Its name.
    pub hash: ContentHash,
    /// Its length.
    pub size_bytes: u64,
}

impl Blob {
    /// What a reference refers to.
    pub fn of(reference: &BlobRef) -> Self {
        Self {
            hash: reference.hash,
            size_bytes: reference.size_bytes,
        }
    }
}

/// A policy that samples: the one after `iteration`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// The iteration that published it; 0 is what the run starts from.
    pub iteration: Iteration,
    /// The adapter; `None` is the bare base model.
    pub adapter: Option<Blob>,
}

impl Policy {
    /// The policy before the first iteration, unless the run starts from an adapter.
    pub const BASE: Self = Self {
        iteration: Iteration(0),
        adapter: None,
    };

    /// The adapter's hash, which names the version (A6).
    pub fn hash(&self) -> Option<ContentHash> {
        self.adapter.map(|blob| blob.hash)
    }
}

/// What an iteration left behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Committed {
    /// Which one.
    pub iteration: Iteration,
    /// The learner's state; `None` is the initial one.
    pub state: Option<Blob>,
    /// The old policy, which samples next.
    pub policy: Policy,
}

impl Committed {
    /// Before the first iteration.
    pub const START: Self = Self {
        iteration: Iteration(0),
        state: None,
        policy: Policy::BASE,
    };
}

/// A durable checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// What it holds.
    pub committed: Committed,
    /// The policies before it with which iterations after it are sampled, oldest first.
    #[serde(default)]
    pub earlier: Vec<Policy>,
    /// The exported EMA adapter; `None` only before the first iteration.
    pub ema_adapter: Option<ContentHash>,
}

impl Checkpoint {
    /// The start of a run that makes its adapter of the seed needs no file.
    pub const START: Self = Self {
        committed: Committed::START,
        earlier: Vec::new(),
        ema_adapter: None,
    };

    /// What learners wrote of it, and where in the run folder: its state, and the policies that are to sample.
    pub fn files(&self) -> impl Iterator<Item = (ContentHash, String)> {
        let Committed {
            iteration,
            state,
            policy,
        } = self.committed;
        let file = move |file: CheckpointFile| move |hash| (hash, file.name(iteration));
        let state = state.map(|state| state.hash);
        let state = state.map(file(CheckpointFile::State));
        let version = policy.hash().map(file(CheckpointFile::Version));
        let earlier = self.earlier.iter().filter_map(move |policy| {
            let file = file(CheckpointFile::Earlier(policy.iteration));
            policy.hash().map(file)
        });
        state.into_iter().chain(version).chain(earlier)
    }
}

/// Where a run stands by the will of people or its own failure: what the coordinator that is started next goes by.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Standing {
    /// It works, or has done all of its iterations.
    #[default]
    Running,
    /// It gives out no work until it is resumed.
    Paused,
    /// It ends after this iteration.
    Draining {
        /// The last one.
        last: Iteration,
    },
    /// It ends as soon as the last committed iteration is durable.
    Stopping {
        /// Why it can't go on, if that is why it ends.
        failure: Option<String>,
    },
    /// It has ended before its last iteration, since somebody wanted it to.
    Stopped,
    /// It has ended because it can't go on.
    Failed {
        /// Why.
        reason: String,
    },
}

/// One line of the record.
#[allow(
    clippy::large_enum_variant,
    reason = "entries are written at once, never kept in numbers"
)]
#[derive(Clone, Debug)]
pub enum Entry {
    /// An iteration begins; whatever was recorded of an earlier attempt at it is void.
    Opened {
        /// Which one.
        iteration: Iteration,
        /// Where in the prompt order it begins.
        position: u64,
    },
    /// A group was drawn.
    Drawn(DrawnGroup),
    /// A group was sampled; a different earlier sampling and its scores are void.
    Sampled(Box<SampledEntry>),
    /// A group was scored.
    Scored {
        /// Who did it.
        worker: WorkerId,
        /// The scores.
        result: ScoreResult,
    },
    /// A group was given up.
    Dropped {
        /// Which one.
        group: GroupId,
        /// Why.
        reason: String,
    },
    /// An iteration happened (A8).
    Committed(Box<CommittedEntry>),
    /// A checkpoint is durable.
    Checkpointed(Checkpoint),
    /// The run stands otherwise than before.
    Stands(Standing),
    /// Iterations after `to` are taken back.
    Rewound {
        /// The last committed one before.
        from: Iteration,
        /// The last committed one now.
        to: Iteration,
    },
    /// Something worth telling.
    Event(Event),
}

/// A sampled group.
#[derive(Clone, Debug)]
pub struct SampledEntry {
    /// Who did it.
    pub worker: WorkerId,
    /// With which policy.
    pub policy: Policy,
    /// What came out.
    pub result: RolloutResult,
}

/// A group as drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DrawnGroup {
    /// Its name.
    pub group: GroupId,
    /// The dataset row.
    pub row: u32,
    /// The refill round; 0 is the first draw.
    pub round: u32,
    /// Where in the prompt order drawing went on after it; 0 in old records.
    pub position: u64,
}

/// Everything about an iteration that happened.
#[derive(Clone, Debug)]
pub struct CommittedEntry {
    /// What it left behind.
    pub committed: Committed,
    /// In numbers.
    pub metrics: IterationMetrics,
    /// The groups that were trained on.
    pub kept: Vec<KeptGroup>,
    /// Rows whose pairs are banned from now on.
    pub banned: Vec<u32>,
    /// Where drawing goes on in the prompt order; the next iteration begins there unless it has begun.
    pub next_position: u64,
    /// Counters so far.
    pub totals: Totals,
}

/// A group that is trained on.
#[derive(Clone, Debug, PartialEq)]
pub struct KeptGroup {
    /// Which one.
    pub group: GroupId,
    /// Per candidate, in sample order.
    pub advantages: Vec<f64>,
    /// The control run's permutation: candidate `k` got the reward of candidate `permutation[k]`.
    pub permutation: Option<Vec<usize>>,
}

/// What the machine starts from: empty, or what the record says.
#[derive(Clone, Debug)]
pub struct Record {
    /// Counts starts of the coordinator; part of generations, leases and epochs.
    pub incarnation: u32,
    /// How the run stands.
    pub standing: Standing,
    /// The last committed iteration.
    pub committed: Committed,
    /// The policies that iterations after the checkpoint are sampled with, oldest first; [`Policy::BASE`] may be
    /// missing.
    pub policies: Vec<Policy>,
    /// The last durable checkpoint.
    pub checkpoint: Checkpoint,
    /// Where iterations after the checkpoint began in the prompt order.
    pub positions: Vec<(Iteration, u64)>,
    /// Where drawing went on when the last iteration was committed, or taken back to.
    pub drawn_to: u64,
    /// Banned rows, with the iteration that banned them.
    pub banned: Vec<(u32, Iteration)>,
    /// Iterations that were open.
    pub open: Vec<OpenRecord>,
    /// Metrics of the last iterations, oldest first.
    pub history: Vec<IterationMetrics>,
    /// Counters so far.
    pub totals: Totals,
    /// The last event's number.
    pub event_sequence: u64,
}

impl Record {
    /// A run that has not begun.
    pub fn empty(incarnation: u32) -> Self {
        Self {
            incarnation,
            standing: Standing::Running,
            committed: Committed::START,
            policies: Vec::new(),
            checkpoint: Checkpoint::START,
            positions: Vec::new(),
            drawn_to: 0,
            banned: Vec::new(),
            open: Vec::new(),
            history: Vec::new(),
            totals: Totals::default(),
            event_sequence: 0,
        }
    }
}

/// An iteration that was open.
#[derive(Clone, Debug)]
pub struct OpenRecord {
    /// Which one.
    pub iteration: Iteration,
    /// Its groups, in order.
    pub groups: Vec<GroupRecord>,
}

/// A group of an open iteration.
#[derive(Clone, Debug)]
pub struct GroupRecord {
    /// As drawn.
    pub drawn: DrawnGroup,
    /// Its sampling, if it got so far.
    pub sampled: Option<(Policy, RolloutResult)>,
    /// Its scores, if it got so far.
    pub scored: Option<ScoreResult>,
    /// Why it was given up, if it was.
    pub dropped: Option<String>,
}
