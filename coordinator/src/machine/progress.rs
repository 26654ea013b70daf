//! How far the run has come: what is committed, and what is durable (A8).

use retouch_proto::{ContentHash, Iteration};

use super::record::{Checkpoint, Committed, Policy, Record};

/// What the record says has happened. The record is written before anyone hears of a change made here.
pub(super) struct Progress {
    /// How many iterations the policy that samples is behind the one that learns (A9: exactly so many, whoever is first).
    staleness: u32,
    /// What the last iteration left behind: the next one starts from it.
    committed: Committed,
    /// The policies that iterations after the checkpoint are sampled with, oldest first: a rewind samples them again.
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
    /// What the record says.
    pub(super) fn restored(record: &Record, staleness: u32) -> Self {
        let mut progress = Self {
            staleness,
            committed: record.committed,
            policies: record.policies.clone(),
            checkpoint: record.checkpoint.clone(),
        };
        progress.forget_old_policies();
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

    /// The newest policy.
    pub(super) fn policy(&self) -> Policy {
        self.committed.policy
    }

    /// The policy that samples an iteration, which is open: a function of its number alone (A9).
    pub(super) fn policy_of(&self, iteration: Iteration) -> Policy {
        let sampler = iteration.0.saturating_sub(1 + self.staleness);
        match sampler {
            0 => Policy::BASE,
            _ => self.policy_after(Iteration(sampler)),
        }
    }

    /// What an older program wrote down may lack a policy: the oldest that there is takes its place.
    fn policy_after(&self, iteration: Iteration) -> Policy {
        let mut newest_first = self.policies.iter().rev();
        let policy = newest_first.find(|policy| policy.iteration <= iteration);
        *policy.or(self.policies.first()).unwrap_or(&Policy::BASE)
    }

    /// The policies before that of an iteration with which later ones are sampled, oldest first.
    pub(super) fn policies_before(&self, iteration: Iteration) -> Vec<Policy> {
        let oldest = iteration.0.saturating_sub(self.staleness).max(1);
        let earlier = (oldest..iteration.0).map(Iteration);
        earlier
            .map(|iteration| self.policy_after(iteration))
            .collect()
    }

    /// The last durable checkpoint.
    pub(super) fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
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

    /// What the next steps can't do without: the state to start from, the policies that sample.
    pub(super) fn needed(&self) -> impl Iterator<Item = ContentHash> {
        let Committed {
            iteration,
            state,
            policy,
        } = self.committed;
        let earlier = self.policies_before(iteration).into_iter();
        let policies = earlier.chain([policy]).filter_map(|policy| policy.hash());
        policies.chain(state.map(|state| state.hash))
    }

    /// Everything that a later step may need: what the next ones do, and what they would after a rewind.
    pub(super) fn blobs(&self) -> impl Iterator<Item = ContentHash> {
        self.needed()
            .chain(self.checkpoint.files().map(|(hash, _)| hash))
    }

    /// An iteration happened.
    pub(super) fn commit(&mut self, committed: Committed) {
        self.committed = committed;
        self.policies.push(committed.policy);
        self.forget_old_policies();
    }

    /// The last iteration's state has been written down under the name that ranks gave it.
    pub(super) fn write_down(&mut self, committed: Committed) {
        self.committed = committed;
    }

    /// A checkpoint is durable.
    pub(super) fn checkpoint_at(&mut self, checkpoint: Checkpoint) {
        self.checkpoint = checkpoint;
        self.forget_old_policies();
    }

    /// Goes back to the last checkpoint.
    pub(super) fn rewind(&mut self) -> TakenBack {
        let from = self.committed.iteration;
        self.committed = self.checkpoint.committed;
        let to = self.committed.iteration;
        self.policies.retain(|policy| policy.iteration <= to);
        TakenBack { from, to }
    }

    fn forget_old_policies(&mut self) {
        let oldest = self
            .checkpoint
            .committed
            .iteration
            .0
            .saturating_sub(self.staleness);
        self.policies.retain(|policy| policy.iteration.0 >= oldest);
    }
}
