//! The learners' part of the run: the step under way, and what failed on the way to the next commit.

use retouch_proto::task::TrainResult;
use retouch_proto::{Epoch, Iteration, LeaseId, WorkerId};

use super::membership::{Collective, Member};

/// What the machine knows of the learners' work.
pub(super) struct Learning {
    /// The step under way; one at a time, since each starts from the state that the last one made.
    training: Option<Training>,
    /// The minting under way, which the ranks of a new epoch wait for.
    pub minting: Option<Minting>,
    /// Who trained last, in which epoch: the same ranks meet again without being introduced.
    pub collective: Collective,
    /// What failed since the last commit, to end the run if it goes on failing.
    pub retry: Retry,
    /// Whether the last committed state is to be written down although its iteration was not due for it.
    checkpoint_asked: bool,
    /// Since when ranks are missing: after the grace, fewer train.
    ranks_missing_since_ms: Option<u64>,
    /// Since when nobody alive holds the state: after the grace, it is lost.
    state_missing_since_ms: Option<u64>,
}

/// A training step under way.
pub(super) struct Training {
    /// The iteration it makes, or whose state it writes down.
    pub iteration: Iteration,
    /// What for.
    pub purpose: Purpose,
    /// The ranks' epoch.
    pub epoch: Epoch,
    /// The ranks in order.
    pub ranks: Vec<Rank>,
    /// Whether rank 0 writes a checkpoint.
    pub checkpoint: bool,
    /// Whether fewer ranks train than configured.
    pub resharded: bool,
}

/// What a training step is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// To make the next iteration.
    Learn,
    /// To write down the last one, which no checkpoint holds yet.
    WriteDown,
}

/// One rank of a training step.
pub(super) struct Rank {
    /// Who it is, and which life.
    pub member: Member,
    /// Under which lease.
    pub lease: LeaseId,
    /// What it made.
    pub result: Option<TrainResult>,
}

/// The minting under way.
pub(super) struct Minting {
    /// The epoch whose ranks wait for it.
    pub epoch: Epoch,
    /// Its rank 0.
    pub member: Member,
    /// Under which lease.
    pub lease: LeaseId,
}

/// What came of looking whether anything can be trained.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Trained {
    /// An iteration that had nothing to train on is committed.
    Committed,
    /// A step was started or is waited for, or nothing can be trained now.
    Nothing,
}

/// What became of a rank's result.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Reported {
    /// It is of no step that is under way.
    Stray,
    /// Other ranks still owe theirs.
    Awaited,
    /// It was the last one.
    Complete,
}

impl Learning {
    /// Numbers epochs from the coordinator's incarnation.
    pub(super) fn new(incarnation: u32) -> Self {
        Self {
            training: None,
            minting: None,
            collective: Collective::new(incarnation),
            retry: Retry::default(),
            checkpoint_asked: false,
            ranks_missing_since_ms: None,
            state_missing_since_ms: None,
        }
    }

    /// The step under way.
    pub(super) fn training(&self) -> Option<&Training> {
        self.training.as_ref()
    }

    /// Whether a step is under way.
    pub(super) fn is_training(&self) -> bool {
        self.training.is_some()
    }

    /// A step begins.
    pub(super) fn begin(&mut self, training: Training) {
        self.training = Some(training);
    }

    /// The step is over, one way or another.
    pub(super) fn end(&mut self) -> Option<Training> {
        self.training.take()
    }

    /// Notes what a rank made.
    pub(super) fn report(&mut self, worker: &WorkerId, result: TrainResult) -> Reported {
        let step = (result.epoch, result.iteration);
        let of_step = |training: &&mut Training| (training.epoch, training.iteration) == step;
        let Some(training) = self.training.as_mut().filter(of_step) else {
            return Reported::Stray;
        };
        let Some(rank) = training.rank_mut(worker) else {
            return Reported::Stray;
        };
        rank.result = Some(result);
        match training.ranks.iter().all(|rank| rank.result.is_some()) {
            true => Reported::Complete,
            false => Reported::Awaited,
        }
    }

    /// Whether this rank still owes its result.
    pub(super) fn awaits(&self, worker: &WorkerId) -> bool {
        let mut ranks = self.training.iter().flat_map(|training| &training.ranks);
        ranks.any(|rank| rank.member.0 == *worker && rank.result.is_none())
    }

    /// The last committed state is to be written down.
    pub(super) fn ask_checkpoint(&mut self) {
        self.checkpoint_asked = true;
    }

    /// The checkpoint that was asked for is there, or can't be had.
    pub(super) fn forget_checkpoint(&mut self) {
        self.checkpoint_asked = false;
    }

    /// Whether the last committed state is to be written down.
    pub(super) fn is_checkpoint_asked(&self) -> bool {
        self.checkpoint_asked
    }

    /// Since when ranks are missing, if they are.
    pub(super) fn ranks_missing_since_ms(&self) -> Option<u64> {
        self.ranks_missing_since_ms
    }

    /// Ranks are missing, from now on at the latest.
    pub(super) fn miss_ranks(&mut self, now_ms: u64) {
        self.ranks_missing_since_ms.get_or_insert(now_ms);
    }

    /// As many ranks are there as can be had.
    pub(super) fn find_ranks(&mut self) {
        self.ranks_missing_since_ms = None;
    }

    /// Nobody alive holds the state; gives since when.
    pub(super) fn miss_state(&mut self, now_ms: u64) -> u64 {
        *self.state_missing_since_ms.get_or_insert(now_ms)
    }

    /// Somebody holds the state.
    pub(super) fn find_state(&mut self) {
        self.state_missing_since_ms = None;
    }
}

impl Training {
    /// The ranks, by name and life.
    pub(super) fn members(&self) -> Vec<Member> {
        self.ranks.iter().map(|rank| rank.member.clone()).collect()
    }

    fn rank_mut(&mut self, worker: &WorkerId) -> Option<&mut Rank> {
        let mut ranks = self.ranks.iter_mut();
        ranks.find(|rank| rank.member.0 == *worker)
    }
}

/// What failed so far on the way to the next commit.
#[derive(Default)]
pub(super) struct Retry {
    /// Failed attempts that nothing excuses.
    attempts: u32,
    /// Steps that failed for want of a blob: making it again may take a while and is no failed attempt.
    fetch_failures: u32,
    /// No step starts before this time.
    not_before_ms: u64,
    /// Members of the epoch that failed last: if one of them turns out to be dead, its death was the cause.
    blamed: Vec<Member>,
}

impl Retry {
    /// An attempt of these members failed; gives how many have.
    pub(super) fn fail(&mut self, members: Vec<Member>) -> u32 {
        self.blamed = members;
        self.attempts += 1;
        self.attempts
    }

    /// A rank could not fetch something; gives how often that has happened.
    pub(super) fn fail_to_fetch(&mut self) -> u32 {
        self.fetch_failures += 1;
        self.fetch_failures
    }

    /// Whether nothing has failed since the last commit.
    pub(super) fn is_first(&self) -> bool {
        self.not_before_ms == 0
    }

    /// Starts nothing before this time.
    pub(super) fn wait_until(&mut self, at_ms: u64) {
        self.not_before_ms = at_ms;
    }

    /// Whether it is time to try again.
    pub(super) fn is_due(&self, now_ms: u64) -> bool {
        self.not_before_ms <= now_ms
    }

    /// A member was lost. If it was of the epoch that failed last, that was no failed attempt.
    pub(super) fn forgive(&mut self, lost: &Member, now_ms: u64) {
        if self.blamed.contains(lost) {
            self.blamed.clear();
            self.attempts -= 1;
            self.not_before_ms = now_ms;
        }
    }
}
