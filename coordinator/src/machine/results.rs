//! What workers did: results are matched by what they are about, not by who was asked (A6), so
//! that a late or repeated one is useful or harmless, never wrong.

use retouch_proto::status::EventKind;
use retouch_proto::task::{RolloutResult, ScoreResult, TaskFailure, TaskOutcome, TaskResult};
use retouch_proto::worker::Role;
use retouch_proto::{ContentHash, GroupId, LeaseId, WorkerId};

use super::groups::{FETCH_FAILURES_MAX, GroupState, same_bits};
use super::leases::{Lease, Work};
use super::record::{Entry, SampledEntry};
use super::{Alarm, Machine};
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

    pub(super) fn close_lease(&mut self, id: LeaseId) -> Option<Lease> {
        let lease = self.leases.close(id)?;
        if let Some(worker) = self.workers.get_mut(&lease.worker) {
            worker.leases.remove(&id);
        }
        self.touch(&lease.worker.clone());
        Some(lease)
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
        let Some(group) = self.group(id) else { return };
        match group.state() {
            GroupState::Queued | GroupState::Sampling(_) => {}
            GroupState::Dropped(_) => return,
            _ => return self.add_owner_of_same(worker, &result),
        }
        let policy = group.policy.unwrap_or_else(|| self.policy());
        if policy.hash() != result.version {
            let made_by = name_of(result.version);
            let reason = format!(
                "was sampled by version {made_by}, not {}",
                name_of(policy.hash())
            );
            return self.fail_if(leased, worker, id, reason);
        }
        self.pin_policy(id);
        self.accept_rollout(worker, result);
    }

    /// Somebody made the same blobs again: one more owner.
    fn add_owner_of_same(&mut self, worker: &WorkerId, result: &RolloutResult) {
        let recorded = self
            .group(result.group)
            .and_then(|group| group.sampled.as_ref());
        if recorded.is_some_and(|recorded| same_bits(recorded, result)) {
            self.blobs.add(worker, hashes(result));
        }
    }

    fn accept_rollout(&mut self, worker: &WorkerId, result: RolloutResult) {
        let id = result.group;
        self.end_work_on(id);
        for hash in hashes(&result) {
            self.blobs.track(hash);
        }
        self.blobs.add(worker, hashes(&result));
        self.throughput.sampled(self.now_ms, result.edits_png.len());
        self.totals.groups_sampled += 1;
        let result = without_owners(result);
        let group = self.group_mut(id).expect("looked up by the caller");
        let same = group
            .sampled
            .as_ref()
            .is_some_and(|recorded| same_bits(recorded, &result));
        let policy = group.policy.expect("pinned by the caller");
        if !same {
            group.scored = None;
        }
        group.sampled = Some(result.clone());
        group.clear_attempts();
        let state = if group.scored.is_some() {
            GroupState::Scored
        } else {
            GroupState::Sampled
        };
        let rescored = state == GroupState::Sampled;
        self.set_group_state(id, state);
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
        self.progress();
    }

    fn take_score(&mut self, worker: &WorkerId, lease: Option<Lease>, result: ScoreResult) {
        let id = result.group;
        let leased = lease.is_some_and(|lease| lease.work == Work::Score(id));
        let Some(group) = self.group(id) else { return };
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
        self.throughput.scored(self.now_ms, result.scores.len());
        self.totals.groups_scored += 1;
        let rewards: Vec<f64> = result.scores.iter().map(|score| score.reward).collect();
        let group = self.group_mut(id).expect("looked up by the caller");
        group.scored = Some(result.clone());
        group.clear_attempts();
        group.fetch_failures = 0;
        self.set_group_state(id, GroupState::Scored);
        self.record(Entry::Scored {
            worker: worker.clone(),
            result,
        });
        if filter::keeps(&rewards, &self.config.filter) {
            self.hint_prefetch(id);
        }
        self.progress();
    }

    /// The learner rank that will probably train on this group can fetch it early.
    fn hint_prefetch(&mut self, id: GroupId) {
        let groups = self.config.rollout.groups_per_iteration as usize;
        let learners: Vec<WorkerId> = self
            .workers
            .alive(Role::Learner)
            .take(self.config.learner.ranks as usize)
            .map(|(id, _)| id.clone())
            .collect();
        let Some(learner) = learners.get(id.index as usize * learners.len() / groups) else {
            return;
        };
        let hashes: Vec<ContentHash> = self
            .group(id)
            .into_iter()
            .flat_map(|group| group.latents())
            .map(|blob| blob.hash)
            .collect();
        if let Some(worker) = self.workers.get_mut(learner) {
            worker.prefetch.extend(hashes);
            self.touch(learner);
        }
    }

    fn take_failure(&mut self, worker: &WorkerId, lease: Option<Lease>, failure: TaskFailure) {
        // Nobody waits for the failure of work that was given to someone else.
        let Some(lease) = lease else { return };
        match lease.work {
            Work::Train => self.train_failed(worker, failure),
            Work::Rollout(id) | Work::Score(id) if !failure.lost_blobs.is_empty() => {
                self.fetch_failed(worker, id, failure);
            }
            Work::Rollout(id) | Work::Score(id) if failure.retryable => {
                self.attempt_failed(worker, id, failure.reason);
            }
            Work::Rollout(id) | Work::Score(id) => self.drop_group(id, failure.reason),
        }
    }

    fn fail_if(&mut self, leased: bool, worker: &WorkerId, id: GroupId, reason: String) {
        if leased {
            self.attempt_failed(worker, id, reason);
        }
    }

    /// A5: tried elsewhere, then dropped with the reason.
    pub(super) fn attempt_failed(&mut self, worker: &WorkerId, id: GroupId, reason: String) {
        let attempts_max = self.config.cluster.attempts_max;
        let not_before_ms = self.now_ms + self.config.cluster.heartbeat_ms;
        let Some(group) = self.group_mut(id) else {
            return;
        };
        group.attempts += 1;
        group.not_before_ms = not_before_ms;
        if !group.avoid.contains(worker) {
            group.avoid.push(worker.clone());
        }
        let attempts = group.attempts;
        self.totals.attempts_failed += 1;
        let message =
            format!("group {id}, attempt {attempts} of {attempts_max} on {worker}: {reason}");
        self.event(EventKind::AttemptFailed, message);
        if attempts >= attempts_max {
            return self.drop_group(
                id,
                format!("{attempts} attempts failed, the last on {worker}: {reason}"),
            );
        }
        self.put_back(id);
        self.look_at(not_before_ms);
    }

    /// Blobs are made again if nobody has them; that is no failed attempt, but has its limit.
    fn fetch_failed(&mut self, worker: &WorkerId, id: GroupId, failure: TaskFailure) {
        let not_before_ms = self.now_ms + self.config.cluster.heartbeat_ms;
        let adapter = self.policy().hash();
        // The policy is not taken for lost because one worker can't reach its owners.
        for hash in failure
            .lost_blobs
            .iter()
            .filter(|hash| Some(**hash) != adapter)
        {
            self.blobs.remove_owners(*hash);
        }
        let Some(group) = self.group_mut(id) else {
            return;
        };
        group.fetch_failures += 1;
        group.not_before_ms = not_before_ms;
        let failures = group.fetch_failures;
        if failures >= FETCH_FAILURES_MAX {
            let reason = format!(
                "{failures} fetches failed, the last on {worker}: {}",
                failure.reason
            );
            return self.drop_group(id, reason);
        }
        self.put_back(id);
        self.look_at(not_before_ms);
    }

    /// The group waits again for a worker of its present stage.
    pub(super) fn put_back(&mut self, id: GroupId) {
        let Some(group) = self.group(id) else { return };
        let state = match group.state() {
            GroupState::Sampling(_) => GroupState::Queued,
            GroupState::Scoring(_) => GroupState::Sampled,
            _ => return,
        };
        self.end_work_on(id);
        self.set_group_state(id, state);
        self.remake_if_lost(id);
    }

    pub(super) fn drop_group(&mut self, id: GroupId, reason: String) {
        self.end_work_on(id);
        self.set_group_state(id, GroupState::Dropped(reason.clone()));
        self.unseal(id.iteration);
        self.record(Entry::Dropped {
            group: id,
            reason: reason.clone(),
        });
        self.event(
            EventKind::GroupDropped,
            format!("group {id} was dropped: {reason}"),
        );
        self.progress();
    }

    /// Whoever works on the group is told to stop.
    fn end_work_on(&mut self, id: GroupId) {
        if let Some(lease) = self.group(id).and_then(|group| group.state().lease()) {
            self.close_lease(lease);
        }
    }

    pub(super) fn set_group_state(&mut self, id: GroupId, state: GroupState) {
        if let Some(open) = self.open.get_mut(&id.iteration) {
            open.set_state(id.index, state);
        }
    }

    /// A group that was not given out before is from now on this policy's.
    pub(super) fn pin_policy(&mut self, id: GroupId) {
        let policy = self.policy();
        if let Some(group) = self.group_mut(id) {
            group.policy.get_or_insert(policy);
        }
    }

    pub(super) fn lease_deadline_ms(&self) -> u64 {
        self.now_ms + self.config.cluster.lease_s * 1000
    }

    pub(super) fn grant(&mut self, worker: &WorkerId, work: Work) -> LeaseId {
        let deadline_ms = self.lease_deadline_ms();
        let id = self.leases.grant(Lease {
            worker: worker.clone(),
            work,
            deadline_ms,
        });
        self.alarms.insert((deadline_ms, Alarm::Lease(id)));
        if let Some(worker) = self.workers.get_mut(worker) {
            worker.leases.insert(id);
        }
        self.touch(worker);
        id
    }

    /// A lease ran out: its worker is alive but stuck, which is a failed attempt.
    pub(super) fn lease_alarm(&mut self, id: LeaseId) {
        let due = self
            .leases
            .get(id)
            .is_some_and(|lease| lease.deadline_ms <= self.now_ms);
        let Some(lease) = due.then(|| self.close_lease(id)).flatten() else {
            return;
        };
        self.totals.leases_expired += 1;
        let reason = format!("no result within {} s", self.config.cluster.lease_s);
        self.event(
            EventKind::LeaseExpired,
            format!("{}: {reason}", lease.worker),
        );
        match lease.work {
            Work::Rollout(group) | Work::Score(group) => {
                self.attempt_failed(&lease.worker, group, reason)
            }
            Work::Train => {
                let failure = TaskFailure {
                    reason,
                    lost_blobs: Vec::new(),
                    retryable: true,
                };
                self.train_failed(&lease.worker, failure);
            }
        }
    }
}

fn hashes(result: &RolloutResult) -> Vec<ContentHash> {
    let whole = [&result.x0, &result.condition, &result.source_png].into_iter();
    whole
        .chain(&result.edits_png)
        .map(|blob| blob.hash)
        .collect()
}

fn without_owners(mut result: RolloutResult) -> RolloutResult {
    let whole = [
        &mut result.x0,
        &mut result.condition,
        &mut result.source_png,
    ]
    .into_iter();
    for blob in whole.chain(&mut result.edits_png) {
        blob.owners.clear();
    }
    result
}

fn name_of(version: Option<ContentHash>) -> String {
    version.map_or("base".to_owned(), |hash| hash.short())
}
