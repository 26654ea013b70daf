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
            0 => self.first_policy(),
            _ => self.policy_after(Iteration(sampler)),
        }
    }

    /// The policy before the first iteration, needed as long as iterations that it samples may come again.
    fn first_policy(&self) -> Policy {
        let mut policies = self.policies.iter();
        let first = policies.find(|policy| policy.iteration.0 == 0);
        *first.unwrap_or(&Policy::BASE)
    }

    /// What an older program wrote down may lack a policy: the oldest that there is takes its place.
    fn policy_after(&self, iteration: Iteration) -> Policy {
        let mut newest_first = self.policies.iter().rev();
        let policy = newest_first.find(|policy| policy.iteration <= iteration);
        *policy.or(self.policies.first()).unwrap_or(&Policy::BASE)
    }

    /// The policies before that of an iteration with which later ones are sampled, oldest first. The base model needs no
    /// mention.
    pub(super) fn policies_before(&self, iteration: Iteration) -> Vec<Policy> {
        let oldest = iteration.0.saturating_sub(self.staleness);
        let first = (oldest == 0 && iteration.0 > 0).then(|| self.first_policy());
        let first = first.filter(|policy| policy.adapter.is_some());
        let earlier = (oldest.max(1)..iteration.0).map(Iteration);
        let earlier = earlier.map(|iteration| self.policy_after(iteration));
        first.into_iter().chain(earlier).collect()
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

#[cfg(test)]
mod tests {
    use super::super::record::Blob;
    use super::*;

    fn policy(iteration: u32) -> Policy {
        Policy {
            iteration: Iteration(iteration),
            adapter: Some(Blob {
                hash: ContentHash::of(&iteration.to_le_bytes()),
                size_bytes: 4,
            }),
        }
    }

    fn committed(policy: Policy) -> Committed {
        Committed {
            iteration: policy.iteration,
            state: policy.adapter,
            policy,
        }
    }

    /// A run that starts from an adapter, or from none.
    fn begun(first: Policy, staleness: u32) -> Progress {
        let mut record = Record::empty(1);
        record.committed = committed(first);
        record.checkpoint.committed = record.committed;
        record.policies = vec![first];
        Progress::restored(&record, staleness)
    }

    #[test]
    fn the_first_policy_samples_until_the_next_may() {
        for first in [policy(0), Policy::BASE] {
            let mut progress = begun(first, 1);
            assert_eq!(progress.policy_of(Iteration(1)), first);
            progress.commit(committed(policy(1)));
            // Iteration 2 is sampled beside the first one's training, and again after a rewind.
            assert_eq!(progress.policy_of(Iteration(2)), first);
            assert_eq!(progress.policy_of(Iteration(3)), policy(1));
            let is_needed = progress.needed().any(|hash| Some(hash) == first.hash());
            assert_eq!(is_needed, first.adapter.is_some());
        }
    }

    #[test]
    fn checkpoints_keep_the_first_policy_as_long_as_it_samples() {
        let mut progress = begun(policy(0), 2);
        (1..=3).for_each(|iteration| progress.commit(committed(policy(iteration))));
        assert_eq!(progress.policies_before(Iteration(0)), []);
        assert_eq!(progress.policies_before(Iteration(1)), [policy(0)]);
        assert_eq!(
            progress.policies_before(Iteration(2)),
            [policy(0), policy(1)]
        );
        assert_eq!(
            progress.policies_before(Iteration(3)),
            [policy(1), policy(2)]
        );
        // The base model needs no file, and checkpoints none for it.
        let mut progress = begun(Policy::BASE, 2);
        progress.commit(committed(policy(1)));
        assert_eq!(progress.policies_before(Iteration(1)), []);
    }
}
