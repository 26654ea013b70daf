//! What is lost, and what is done about it: workers, blobs, the learners' state (A8, A9).

use retouch_proto::GroupId;
use retouch_proto::WorkerId;
use retouch_proto::status::{EventKind, Presence};
use retouch_proto::worker::Role;

use super::Machine;
use super::groups::{Group, GroupState};
use super::leases::Work;
use super::record::{Blob, Committed, Entry};

impl Machine {
    /// A generation is over: its leases go to others, which is no failed attempt.
    pub(super) fn lose_worker(&mut self, id: &WorkerId, why: &str) {
        self.end_worker(id, Presence::Lost, why);
    }

    /// A generation is over because it is [lost](Presence::Lost) or has [left](Presence::Left).
    pub(super) fn end_worker(&mut self, id: &WorkerId, presence: Presence, why: &str) {
        let Some(worker) = self.workers.end(id, presence) else {
            return;
        };
        let (role, generation) = (worker.role, worker.generation);
        let leases: Vec<_> = worker.leases.iter().copied().collect();
        self.blobs.remove_worker(id);
        self.touch(id);
        for lease in leases {
            let Some(lease) = self.close_lease(lease) else {
                continue;
            };
            self.totals.leases_lost += 1;
            match lease.work {
                Work::Rollout(group) | Work::Score(group) => self.put_back(group),
                Work::Train => {}
                Work::Mint => self.stop_minting(),
            }
        }
        if self.is_training_without_result(id) {
            self.abort_training();
        }
        self.forgive(&(id.clone(), generation));
        if !self.is_over() {
            let kind = if presence == Presence::Left {
                EventKind::WorkerLeft
            } else {
                EventKind::WorkerLost
            };
            self.event(kind, format!("{role} worker {id}: {why}"));
            self.looks_for_lost = true;
        }
    }

    /// Finds out what is lost for good.
    pub(super) fn recover(&mut self) {
        if self.is_over() {
            return;
        }
        if self
            .adopting_until_ms
            .is_some_and(|until_ms| until_ms <= self.now_ms)
        {
            self.adopting_until_ms = None;
            self.looks_for_lost = true;
        }
        // Looking at every group is for the steps in which something may have been lost.
        if self.looks_for_lost && self.adopting_until_ms.is_none() {
            self.looks_for_lost = false;
            self.remake_lost_images();
            self.give_up_lost_policies();
        }
        if self.training.is_none() && !self.is_state_available() {
            self.wait_for_state();
        } else {
            self.state_lost_since_ms = None;
        }
    }

    /// Who is expected has registered: what nobody of them holds will not turn up any more.
    pub(super) fn end_adopting_if_everyone_is_back(&mut self) {
        if self.adopting_until_ms.is_some() && self.is_everyone_back() {
            self.adopting_until_ms = Some(self.now_ms);
        }
    }

    fn is_everyone_back(&self) -> bool {
        let cluster = &self.config.cluster;
        let back = |role, expected: u32| self.workers.count_alive(role) >= expected.max(1) as usize;
        back(Role::Rollout, cluster.rollout_workers)
            && back(Role::Learner, self.config.learner.ranks)
    }

    /// Groups that wait for a judge but whose images nobody has are sampled again.
    fn remake_lost_images(&mut self) {
        let waiting = self.open.values().flat_map(|open| open.sampled());
        let ids: Vec<GroupId> = waiting.map(|group| group.drawn.group).collect();
        ids.into_iter().for_each(|id| self.remake_if_lost(id));
    }

    pub(super) fn remake_if_lost(&mut self, id: GroupId) {
        let Some(group) = self
            .group(id)
            .filter(|group| *group.state() == GroupState::Sampled)
        else {
            return;
        };
        if !self.all_available(group.images()) && self.adopting_until_ms.is_none() {
            self.remake(id);
        }
    }

    /// With stale samples allowed, a group may wait for a policy that nobody holds any more: it is
    /// sampled anew by the present one.
    fn give_up_lost_policies(&mut self) {
        if self.config.rollout.staleness_max == 0 {
            return;
        }
        let queued = self.open.values().flat_map(|open| open.queued());
        let lost: Vec<GroupId> = queued
            .filter(|group| self.is_policy_lost(group))
            .map(|group| group.drawn.group)
            .collect();
        lost.into_iter().for_each(|id| self.sample_anew(id));
    }

    /// Whether a group is bound to a policy that is neither the present one nor to be had.
    pub(super) fn is_policy_lost(&self, group: &Group) -> bool {
        let other = group
            .policy
            .filter(|policy| policy.hash() != self.policy().hash());
        other.is_some_and(|policy| !self.all_available(policy.adapter.into_iter()))
    }

    /// Forgets everything about a group but its pair.
    pub(super) fn sample_anew(&mut self, id: GroupId) {
        self.unseal(id.iteration);
        if let Some(group) = self.group_mut(id) {
            (group.policy, group.sampled, group.scored) = (None, None, None);
            group.clear_attempts();
        }
        self.remake(id);
    }

    /// Whether the next iteration can start from the last one: its state and policy are there.
    pub(super) fn is_state_available(&self) -> bool {
        let Committed { state, policy, .. } = self.committed;
        self.all_available(state.into_iter().chain(policy.adapter))
    }

    /// Holders of the state may come back within the grace; when every learner is back without
    /// it, or the grace is over, it is lost.
    fn wait_for_state(&mut self) {
        if self.adopting_until_ms.is_some() {
            return;
        }
        let since_ms = *self.state_lost_since_ms.get_or_insert(self.now_ms);
        let until_ms = since_ms + self.config.cluster.rank_grace_s * 1000;
        let learners = self.workers.count_alive(Role::Learner);
        let all_back = learners >= self.config.learner.ranks as usize;
        if all_back || (learners > 0 && until_ms <= self.now_ms) {
            self.rewind();
        } else if until_ms > self.now_ms {
            self.look_at(until_ms);
        }
    }

    /// A8: back to the last checkpoint; later iterations are taken back and their seeds replayed.
    fn rewind(&mut self) {
        let (from, to) = (
            self.committed.iteration,
            self.checkpoint.committed.iteration,
        );
        let leases: Vec<_> = self.leases.iter().map(|(id, _)| *id).collect();
        for lease in leases {
            self.close_lease(lease);
        }
        self.minting = None;
        self.open.clear();
        self.committed = self.checkpoint.committed;
        self.policies = vec![self.committed.policy];
        self.prompts.unban_after(to);
        self.prompts
            .go_to(self.positions.get(&to.next()).copied().unwrap_or(0));
        self.positions
            .retain(|iteration, _| *iteration <= to.next());
        self.history.retain(|metrics| metrics.iteration <= to);
        self.totals.rewound += u64::from(from.0 - to.0);
        self.state_lost_since_ms = None;
        self.collective.dissolve();
        self.record(Entry::Rewound { from, to });
        let message = format!(
            "no living worker holds the state of iteration {from}: back to checkpoint {to}"
        );
        self.event(EventKind::Rewound, message);
        self.forget_unwanted();
        self.progress();
    }

    /// Whether somebody has all of these.
    pub(super) fn all_available(&self, mut blobs: impl Iterator<Item = Blob>) -> bool {
        blobs.all(|blob| self.blobs.is_available(blob.hash))
    }

    /// Sends a group's sampling back to be made again.
    pub(super) fn remake(&mut self, id: GroupId) {
        self.totals.groups_remade += 1;
        self.set_group_state(id, GroupState::Queued);
        let message = format!("blobs of group {id} were lost and are made again");
        self.event(EventKind::GroupRemade, message);
    }
}
