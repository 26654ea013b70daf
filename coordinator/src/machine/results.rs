//! What workers did: results are matched by what they are about, not by who was asked (A6), so
//! that a late or repeated one is useful or harmless, never wrong.

use retouch_proto::status::EventKind;
use retouch_proto::task::{RolloutResult, ScoreResult, TaskOutcome, TaskResult, TermFailure};
use retouch_proto::worker::Role;
use retouch_proto::{ContentHash, GroupId, LeaseId, WorkerId};

use super::Machine;
use super::groups::{GroupState, hashes, same_bits};
use super::leases::{Lease, Work};
use super::record::{Blob, Entry, Policy, SampledEntry};
use crate::filter;

impl Machine {
    pub(super) fn take_results(&mut self, worker: &WorkerId, results: Vec<TaskResult>) {
        for result in results {
            let lease = self.close_lease_of(result.lease, worker);
            self.count_result(worker, &lease, &result.outcome);
            match result.outcome {
                TaskOutcome::Rollout(result) => self.take_rollout(worker, lease, result),
                TaskOutcome::Score(result) => self.take_score(worker, lease, result),
                TaskOutcome::Train(result) => self.take_train(worker, result),
                TaskOutcome::Mint(result) => self.take_mint(worker, result),
                TaskOutcome::Failed(failure) => self.take_failure(worker, lease, failure),
            }
        }
    }

    fn count_result(&mut self, worker: &WorkerId, lease: &Option<Lease>, outcome: &TaskOutcome) {
        let Some(worker) = self.workers.get_mut(worker).filter(|_| lease.is_some()) else {
            return;
        };
        match outcome {
            TaskOutcome::Failed(_) => worker.failed += 1,
            _ => worker.done += 1,
        }
    }

    /// Ends the lease if it is this worker's.
    fn close_lease_of(&mut self, id: LeaseId, worker: &WorkerId) -> Option<Lease> {
        self.leases
            .get(id)
            .filter(|lease| lease.worker == *worker)?;
        self.close_lease(id)
    }

    fn take_rollout(&mut self, worker: &WorkerId, lease: Option<Lease>, result: RolloutResult) {
        let id = result.group;
        let leased = lease.is_some_and(|lease| lease.work == Work::Rollout(id));
        let size = self.config.rollout.group_size as usize;
        if result.edits_png.len() != size {
            let reason = format!(
                "{} images came back, a group has {size}",
                result.edits_png.len()
            );
            return self.fail_if(leased, worker, id, reason);
        }
        let Some(group) = self.open.group(id) else {
            return;
        };
        match group.state() {
            // Queued too: a lease that expired, or one of a coordinator before this, whose result is as good.
            GroupState::Queued | GroupState::Sampling(_) => {}
            GroupState::Dropped(_) => return,
            _ => return self.add_owner_of_same(worker, &result),
        }
        let policy = self.progress.policy_of(id.iteration);
        if policy.hash() != result.version {
            let made_by = name_of(result.version);
            let reason = format!(
                "was sampled by version {made_by}, not {}",
                name_of(policy.hash())
            );
            return self.fail_if(leased, worker, id, reason);
        }
        self.accept_rollout(worker, policy, result);
    }

    /// Somebody made the same blobs again: one more owner.
    fn add_owner_of_same(&mut self, worker: &WorkerId, result: &RolloutResult) {
        let group = self.open.group(result.group);
        let recorded = group.and_then(|group| group.sampled.as_ref());
        if recorded.is_some_and(|recorded| same_bits(recorded, result)) {
            self.blobs.add(worker, hashes(result));
        }
    }

    fn accept_rollout(&mut self, worker: &WorkerId, policy: Policy, result: RolloutResult) {
        let id = result.group;
        self.end_work_on(id);
        for hash in hashes(&result) {
            self.blobs.track(hash);
        }
        self.blobs.add(worker, hashes(&result));
        let now_ms = self.timers.now_ms();
        self.telemetry.sampled(now_ms, result.edits_png.len());
        let result = without_owners(result);
        let group = self.open.group_mut(id).expect("looked up by the caller");
        let same = group
            .sampled
            .as_ref()
            .is_some_and(|recorded| same_bits(recorded, &result));
        // Scores of a sampling that was lost and made again still hold if its bits are the same.
        if !same {
            group.scored = None;
        }
        group.policy = Some(policy);
        group.sampled = Some(result.clone());
        group.clear_attempts();
        let state = if group.scored.is_some() {
            GroupState::Scored
        } else {
            GroupState::Sampled
        };
        let rescored = state == GroupState::Sampled;
        self.open.set_state(id, state);
        if rescored {
            // Other bits than before (another kind of device): the seal no longer holds.
            self.unseal(id.iteration);
        }
        if !same {
            let worker = worker.clone();
            self.record(Entry::Sampled(Box::new(SampledEntry {
                worker,
                policy,
                result,
            })));
        }
        self.moved();
    }

    fn take_score(&mut self, worker: &WorkerId, lease: Option<Lease>, result: ScoreResult) {
        let id = result.group;
        let leased = lease.is_some_and(|lease| lease.work == Work::Score(id));
        let Some(group) = self.open.group(id) else {
            return;
        };
        if !matches!(group.state(), GroupState::Sampled | GroupState::Scoring(_)) {
            return;
        }
        let sampled = group.sampled.as_ref().expect("a sampled group");
        if sampled
            .edits_png
            .iter()
            .map(|edit| edit.hash)
            .ne(result.edits.iter().copied())
        {
            return self.fail_if(
                leased,
                worker,
                id,
                "other images than the group's were scored".into(),
            );
        }
        let size = self.config.rollout.group_size as usize;
        let rewards_valid = result.scores.iter().all(|score| score.reward.is_finite());
        if result.scores.len() != size || !rewards_valid {
            let reason = format!(
                "{} scores came back for {size} images, or not all are finite",
                result.scores.len()
            );
            return self.fail_if(leased, worker, id, reason);
        }
        self.accept_score(worker, result);
    }

    fn accept_score(&mut self, worker: &WorkerId, result: ScoreResult) {
        let id = result.group;
        self.end_work_on(id);
        let now_ms = self.timers.now_ms();
        self.telemetry.scored(now_ms, result.scores.len());
        self.report_unscored(&result);
        let rewards: Vec<f64> = result.scores.iter().map(|score| score.reward).collect();
        let group = self.open.group_mut(id).expect("looked up by the caller");
        group.scored = Some(result.clone());
        group.clear_attempts();
        group.fetch_failures = 0;
        self.open.set_state(id, GroupState::Scored);
        self.record(Entry::Scored {
            worker: worker.clone(),
            result,
        });
        if filter::keeps(&rewards, &self.config.filter) {
            self.hint_prefetch(id);
        }
        self.moved();
    }

    /// A watched term's failure costs the group nothing, and is said once an iteration: a judge that
    /// fails for one group mostly fails for all of them.
    fn report_unscored(&mut self, result: &ScoreResult) {
        for TermFailure { term, reason } in &result.unscored {
            let open = self.open.get(result.group.iteration);
            let groups = open.into_iter().flat_map(|open| open.groups());
            let mut earlier = groups.filter_map(|group| group.scored.as_ref());
            if earlier.any(|scored| scored.unscored.iter().any(|failure| failure.term == *term)) {
                continue;
            }
            let message = format!(
                "watched reward term {term} has no scores for group {}: {reason}",
                result.group
            );
            self.event(EventKind::TermFailed, message);
        }
    }

    /// The learner rank that will probably train on this group can fetch it early.
    fn hint_prefetch(&mut self, id: GroupId) {
        let groups = self.config.rollout.groups_per_iteration as usize;
        let learners: Vec<WorkerId> = self
            .workers
            .alive(Role::Learner)
            .take(self.ranks().1)
            .map(|(id, _)| id.clone())
            .collect();
        let Some(learner) = learners.get(id.index as usize * learners.len() / groups) else {
            return;
        };
        let group = self.open.group(id).into_iter();
        let latents: Vec<Blob> = group.flat_map(|group| group.latents()).collect();
        if let Some(worker) = self.workers.get_mut(learner) {
            worker.prefetch.extend(latents);
            self.workers.touch(learner);
        }
    }
}

fn without_owners(mut result: RolloutResult) -> RolloutResult {
    let whole = [&mut result.x0, &mut result.condition].into_iter();
    let images = result.sources_png.iter_mut().chain(&mut result.edits_png);
    for blob in whole.chain(images) {
        blob.owners.clear();
    }
    result
}

fn name_of(version: Option<ContentHash>) -> String {
    version.map_or("base".to_owned(), |hash| hash.short())
}
