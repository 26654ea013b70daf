//! What becomes of work that was not done (A5): it is tried elsewhere, then given up with its
//! reason, and never turned into a score.

use retouch_proto::status::EventKind;
use retouch_proto::task::TaskFailure;
use retouch_proto::{ContentHash, GroupId, LeaseId, WorkerId};

use super::Machine;
use super::groups::{FETCH_FAILURES_MAX, GroupState};
use super::leases::{Lease, Work};
use super::record::Entry;

/// How long after a full disk was met work is given out again.
const SPACE_MS: u64 = 3_000;

impl Machine {
    pub(super) fn take_failure(
        &mut self,
        worker: &WorkerId,
        lease: Option<Lease>,
        failure: TaskFailure,
    ) {
        // Nobody waits for the failure of work that was given to someone else.
        let Some(lease) = lease else { return };
        if failure.disk_full {
            return self.wait_for_space(worker, lease.work, &failure.reason);
        }
        match lease.work {
            Work::Train => self.train_failed(worker, failure),
            Work::Mint => self.mint_failed(worker, failure),
            Work::Rollout(id) | Work::Score(id) if !failure.lost_blobs.is_empty() => {
                self.fetch_failed(worker, id, failure);
            }
            Work::Rollout(id) | Work::Score(id) if failure.retryable => {
                self.attempt_failed(worker, id, failure.reason);
            }
            Work::Rollout(id) | Work::Score(id) => self.drop_group(id, failure.reason),
        }
    }

    /// A full disk says nothing about the work: it is given out again a little later, however often, and people are
    /// told.
    fn wait_for_space(&mut self, worker: &WorkerId, work: Work, reason: &str) {
        let message = format!("{worker} has no space on its disk: {reason}");
        if self.telemetry.is_new_shortage(worker, message.clone()) {
            self.event(EventKind::Alarm, message);
        }
        let again_ms = self.timers.now_ms() + SPACE_MS;
        match work {
            Work::Rollout(id) | Work::Score(id) => {
                self.put_back(id);
                if let Some(group) = self.open.group_mut(id) {
                    group.not_before_ms = again_ms;
                    // Having nothing to do, it would be the first choice each time, whoever else has space.
                    group.avoid(worker);
                }
                self.timers.look_at(again_ms);
            }
            Work::Train => {
                self.abort_training();
                self.retry_at(again_ms);
            }
            Work::Mint => {
                self.stop_minting();
                self.retry_at(again_ms);
            }
        }
    }

    pub(super) fn fail_if(&mut self, leased: bool, worker: &WorkerId, id: GroupId, reason: String) {
        if leased {
            self.attempt_failed(worker, id, reason);
        }
    }

    /// A5: tried elsewhere, then dropped with the reason.
    pub(super) fn attempt_failed(&mut self, worker: &WorkerId, id: GroupId, reason: String) {
        let attempts_max = self.config.cluster.attempts_max;
        let not_before_ms = self.timers.now_ms() + self.config.cluster.heartbeat_ms;
        let Some(group) = self.open.group_mut(id) else {
            return;
        };
        group.attempts += 1;
        group.not_before_ms = not_before_ms;
        group.avoid(worker);
        let attempts = group.attempts;
        self.telemetry.totals.attempts_failed += 1;
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
        self.timers.look_at(not_before_ms);
    }

    /// Blobs are made again if nobody has them; that is no failed attempt, but has its limit.
    fn fetch_failed(&mut self, worker: &WorkerId, id: GroupId, failure: TaskFailure) {
        let not_before_ms = self.timers.now_ms() + self.config.cluster.heartbeat_ms;
        // Policies are not taken for lost because one worker can't reach their owners: that would mean a rewind.
        let needed: Vec<ContentHash> = self.progress.needed().collect();
        let lost = failure.lost_blobs.iter();
        for hash in lost.filter(|hash| !needed.contains(hash)) {
            self.blobs.remove_owners(*hash);
        }
        self.blobs.suspect_loss();
        let Some(group) = self.open.group_mut(id) else {
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
        self.timers.look_at(not_before_ms);
    }

    /// The group waits again for a worker of its present stage.
    pub(super) fn put_back(&mut self, id: GroupId) {
        let Some(group) = self.open.group(id) else {
            return;
        };
        let state = match group.state() {
            GroupState::Sampling(_) => GroupState::Queued,
            GroupState::Scoring(_) => GroupState::Sampled,
            _ => return,
        };
        self.end_work_on(id);
        self.open.set_state(id, state);
        self.blobs.suspect_loss();
        self.remake_if_lost(id);
    }

    pub(super) fn drop_group(&mut self, id: GroupId, reason: String) {
        self.end_work_on(id);
        self.open.set_state(id, GroupState::Dropped(reason.clone()));
        self.unseal(id.iteration);
        self.record(Entry::Dropped {
            group: id,
            reason: reason.clone(),
        });
        self.event(
            EventKind::GroupDropped,
            format!("group {id} was dropped: {reason}"),
        );
        self.moved();
    }

    /// Whoever works on the group is told to stop.
    pub(super) fn end_work_on(&mut self, id: GroupId) {
        let lease = self.open.group(id).and_then(|group| group.state().lease());
        if let Some(lease) = lease {
            self.close_lease(lease);
        }
    }

    /// A lease ran out: its worker is alive but stuck, which is a failed attempt.
    pub(super) fn lease_timer(&mut self, id: LeaseId) {
        let due = self
            .leases
            .get(id)
            .is_some_and(|lease| lease.deadline_ms <= self.timers.now_ms());
        let Some(lease) = due.then(|| self.close_lease(id)).flatten() else {
            return;
        };
        self.telemetry.totals.leases_expired += 1;
        let reason = format!("no result within {} s", self.config.cluster.lease_s);
        self.event(
            EventKind::LeaseExpired,
            format!("{}: {reason}", lease.worker),
        );
        let failure = TaskFailure::retryable(reason);
        self.take_failure(&lease.worker.clone(), Some(lease), failure);
    }
}
