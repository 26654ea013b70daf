//! How far the run has come: what is committed, and what is durable (A8).

use retouch_proto::{ContentHash, Iteration};

use super::record::{Checkpoint, Committed, Policy, Record};

/// What the record says has happened. The record is written before anyone hears of a change made here.
pub(super) struct Progress {
    /// What the last iteration left behind: the next one starts from it.
    committed: Committed,
    /// The policies of the last iterations, newest last: with stale samples allowed, groups of open iterations may
    /// still be bound to an older one, whose adapter must be kept for them.
    policies: Vec<Policy>,
    /// Where the run goes back to when the learners' state is lost.
    checkpoint: Checkpoint,
}

/// Iterations that a rewind takes back.
pub(super) struct TakenBack {
    /// The last committed one before.
    pub from: Iteration,
    /// The last committed one now.
    pub to: Iteration,
}

impl Progress {
    /// What the record says, with the policies that samples may be stale by.
    pub(super) fn restored(record: &Record, staleness_max: u32) -> Self {
        let mut progress = Self {
            committed: record.committed,
            policies: record.policies.clone(),
            checkpoint: record.checkpoint,
        };
        progress.forget_old_policies(staleness_max);
        progress
    }

    /// What the last iteration left behind.
    pub(super) fn committed(&self) -> Committed {
        self.committed
    }

    /// The iteration that is trained next.
    pub(super) fn next(&self) -> Iteration {
        self.committed.iteration.next()
    }

    /// The policy that samples now.
    pub(super) fn policy(&self) -> Policy {
        self.committed.policy
    }

    /// The last durable checkpoint.
    pub(super) fn checkpoint(&self) -> Checkpoint {
        self.checkpoint
    }

    /// Whether the last committed iteration is durable.
    pub(super) fn is_checkpointed(&self) -> bool {
        self.checkpoint.committed.iteration == self.committed.iteration
    }

    /// How many policies are remembered.
    #[cfg(any(test, feature = "simulator"))]
    pub(super) fn policies(&self) -> usize {
        self.policies.len()
    }

    /// Everything that a later step may need: states to start from, policies to sample with.
    pub(super) fn blobs(&self) -> impl Iterator<Item = ContentHash> {
        let states = [self.committed, self.checkpoint.committed]
            .into_iter()
            .flat_map(|committed| {
                [
                    committed.state.map(|state| state.hash),
                    committed.policy.hash(),
                ]
            });
        let policies = self.policies.iter().filter_map(Policy::hash);
        policies.chain(states.flatten())
    }

    /// An iteration happened.
    pub(super) fn commit(&mut self, committed: Committed, staleness_max: u32) {
        self.committed = committed;
        self.policies.push(committed.policy);
        self.forget_old_policies(staleness_max);
    }

    /// The last iteration's state has been written down under the name that ranks gave it.
    pub(super) fn write_down(&mut self, committed: Committed) {
        self.committed = committed;
    }

    /// A checkpoint is durable.
    pub(super) fn checkpoint_at(&mut self, checkpoint: Checkpoint) {
        self.checkpoint = checkpoint;
    }

    /// Goes back to the last checkpoint.
    pub(super) fn rewind(&mut self) -> TakenBack {
        let from = self.committed.iteration;
        self.committed = self.checkpoint.committed;
        self.policies = vec![self.committed.policy];
        let to = self.committed.iteration;
        TakenBack { from, to }
    }

    fn forget_old_policies(&mut self, staleness_max: u32) {
        let kept = staleness_max as usize + 1;
        self.policies
            .drain(..self.policies.len().saturating_sub(kept));
    }
}
