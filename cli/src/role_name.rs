//! The worker roles by their names on the command line.

use clap::ValueEnum;
use retouch_models::inspect;
use retouch_proto::worker;

/// A role that a process can take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum RoleName {
    /// Samples groups of edits.
    RolloutWorker,
    /// Scores groups with the judge.
    RewardWorker,
    /// Trains the adapter, as one rank.
    Learner,
}

impl From<RoleName> for worker::Role {
    fn from(name: RoleName) -> Self {
        match name {
            RoleName::RolloutWorker => Self::Rollout,
            RoleName::RewardWorker => Self::Reward,
            RoleName::Learner => Self::Learner,
        }
    }
}

impl From<RoleName> for inspect::Role {
    fn from(name: RoleName) -> Self {
        match name {
            RoleName::RolloutWorker => Self::RolloutWorker,
            RoleName::RewardWorker => Self::RewardWorker,
            RoleName::Learner => Self::Learner,
        }
    }
}
