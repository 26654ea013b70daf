//! How a worker and the coordinator talk: registration, reports, replies.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::blob::{BlobAddress, BlobRef, ContentHash};
use crate::ids::{Generation, GroupId, Iteration, LeaseId, RunId, WorkerId};
use crate::task::{Assignment, TaskResult};

/// What a worker is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Samples groups.
    #[serde(rename = "rollout-worker", alias = "rollout")]
    Rollout,
    /// Scores groups.
    #[serde(rename = "reward-worker", alias = "reward")]
    Reward,
    /// Trains.
    Learner,
}

impl Role {
    /// All roles, in the order of the work.
    pub const ALL: [Self; 3] = [Self::Rollout, Self::Reward, Self::Learner];

    /// Its name: that of the command, of the folder of its credentials, and in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Rollout => "rollout-worker",
            Self::Reward => "reward-worker",
            Self::Learner => "learner",
        }
    }

    /// The word for it in a sentence, before "worker". Its name once was this alone, and is read so, too.
    pub fn word(self) -> &'static str {
        match self {
            Self::Rollout => "rollout",
            Self::Reward => "reward",
            Self::Learner => "learner",
        }
    }
}

/// [`Role::word`], for sentences.
impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.word())
    }
}

/// Text that is not a role.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("role {0:?} is none of rollout-worker, reward-worker, learner")]
pub struct InvalidRole(String);

impl FromStr for Role {
    type Err = InvalidRole;

    fn from_str(text: &str) -> Result<Self, InvalidRole> {
        let is_meant = |role: &Self| [role.as_str(), role.word()].contains(&text);
        let known = Self::ALL.into_iter().find(is_meant);
        known.ok_or_else(|| InvalidRole(text.to_owned()))
    }
}

/// A worker's own view of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WorkerState {
    /// Weights are being read; alive, but no work yet.
    Loading,
    /// Takes work.
    Ready,
    /// Finishes what it has and takes no more.
    Leaving,
}

/// A worker joins the run, or joins again after a restart of either side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registration {
    /// The worker's name, kept over restarts.
    pub worker: WorkerId,
    /// What it is for.
    pub role: Role,
    /// Tasks it can run at a time.
    pub slots: u32,
    /// The device, for people.
    pub device: String,
    /// Its `Blobs` service.
    pub blob_address: BlobAddress,
    /// Where peers of the collective reach it (learners).
    pub collective_address: Option<SocketAddr>,
    /// Blobs it holds, from before the registration.
    pub holds: Vec<ContentHash>,
    /// Tasks it is running, from before the registration; those that are still wanted are
    /// adopted, the others are cancelled by the first reply.
    pub running: Vec<RunningTask>,
}

/// A task that a registering worker is running.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RunningTask {
    /// The lease under which it got it.
    pub lease: LeaseId,
    /// The kind of the task, by the role that runs it.
    pub kind: Role,
    /// The group, except for training.
    pub group: Option<GroupId>,
}

/// The answer to a registration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registered {
    /// To be given in every report.
    pub generation: Generation,
    /// The run that was joined.
    pub run: RunId,
    /// The resolved run file.
    pub config_toml: String,
}

/// What a worker tells at every heartbeat, and whenever something happened.
///
/// Saying it twice does no harm: the coordinator acts on what it has not heard yet. Results and
/// blob changes are repeated until a report that carried them was answered.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// Who reports.
    pub worker: WorkerId,
    /// Which life of it.
    pub generation: Generation,
    /// Counts this generation's reports from 1; an answer to an older one is void.
    pub sequence: u64,
    /// The worker's own view of itself.
    pub state: WorkerState,
    /// Tasks it could start now.
    pub slots_free: u32,
    /// Leases it has accepted and not finished. An assignment that is missing here after the
    /// reply that carried it is sent again.
    pub running: Vec<LeaseId>,
    /// Finished tasks.
    pub results: Vec<TaskResult>,
    /// Blobs that it came to hold (not those in its own results).
    pub blobs_added: Vec<ContentHash>,
    /// Blobs that it no longer holds.
    pub blobs_dropped: Vec<ContentHash>,
}

/// What the worker should do next.
#[derive(Clone, Debug, PartialEq)]
pub struct ReportReply {
    /// New work, and work that the report did not list as running. A lease that the worker
    /// already knows is to be ignored.
    pub assignments: Vec<Assignment>,
    /// Leases to abandon.
    pub cancel: Vec<LeaseId>,
    /// Blobs that will be needed soon (learners).
    pub prefetch: Vec<BlobRef>,
    /// What to do with itself.
    pub directive: Directive,
    /// The last committed iteration: blobs made for groups up to it may be dropped, and of
    /// states only the two newest are needed.
    pub committed: Iteration,
}

/// What a worker is to do with itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Directive {
    /// Go on.
    Continue,
    /// The generation is unknown or over: register again.
    Reregister,
    /// The run has ended, or goes on without this worker: exit.
    Shutdown,
    /// Exit in a way that makes the parent start the process again.
    Restart,
}
