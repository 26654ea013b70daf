//! What is lost, and what is done about it: workers, blobs, the learners' state (A8, A9).

use std::collections::HashSet;

use retouch_proto::status::{EventKind, Presence};
use retouch_proto::worker::Role;
use retouch_proto::{ContentHash, GroupId, WorkerId};

use super::Machine;
use super::groups::{Group, GroupState};
use super::leases::Work;
use super::progress::TakenBack;
use super::record::Entry;

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
        self.workers.touch(id);
        for lease in leases {
            let Some(lease) = self.close_lease(lease) else {
                continue;
            };
            self.telemetry.totals.leases_lost += 1;
            match lease.work {
                Work::Rollout(group) | Work::Score(group) => self.put_back(group),
                Work::Train => {}
                Work::Mint => self.stop_minting(),
            }
        }
        // A rank that has reported is no longer needed: its result counts, dead or alive.
        if self.learning.awaits(id) {
            self.abort_training();
        }
        let now_ms = self.timers.now_ms();
        self.learning
            .retry
            .forgive(&(id.clone(), generation), now_ms);
        if !self.is_over() {
            let kind = if presence == Presence::Left {
                EventKind::WorkerLeft
            } else {
                EventKind::WorkerLost
            };
            self.event(kind, format!("{role} worker {id}: {why}"));
            self.blobs.suspect_loss();
        }
    }

    /// Finds out what is lost for good.
    pub(super) fn recover(&mut self) {
        if self.is_over() {
            return;
        }
        // Looking at every group is for the steps in which something may have been lost.
        if self.blobs.take_suspicion(self.timers.now_ms()) {
            self.remake_lost_images();
        }
        // During a step its ranks hold the state, and what they make of it takes its place.
        if self.learning.is_training() || self.is_state_available() {
            self.learning.find_state();
        } else {
            self.wait_for_state();
        }
    }

    /// Everyone who is expected has registered: what none of them holds will not turn up any more.
    pub(super) fn stop_awaiting_if_everyone_is_back(&mut self) {
        if self.blobs.is_awaiting_holders() && self.is_everyone_back() {
            // Until this step's search, so that nothing is taken for lost while a registration is half taken in.
            self.blobs.await_holders(self.timers.now_ms());
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
        let waiting = self.open.sampled();
        let ids: Vec<GroupId> = waiting.map(|group| group.drawn.group).collect();
        ids.into_iter().for_each(|id| self.remake_if_lost(id));
    }

    pub(super) fn remake_if_lost(&mut self, id: GroupId) {
        let group = self.open.group(id);
        let waiting = group.filter(|group| *group.state() == GroupState::Sampled);
        let lost = waiting.is_some_and(|group| !self.blobs.are_available(group.images()));
        if lost && !self.blobs.is_awaiting_holders() {
            self.remake(id);
        }
    }

    /// Whether the run can go on from the last iteration: its state is there, and the policies that sample what comes
    /// after it.
    pub(super) fn is_state_available(&self) -> bool {
        self.progress
            .needed()
            .all(|hash| self.blobs.is_available(hash))
    }

    /// Holders of the state may come back within the grace; when every learner is back without
    /// it, or the grace is over, it is lost.
    fn wait_for_state(&mut self) {
        if self.blobs.is_awaiting_holders() {
            return;
        }
        let now_ms = self.timers.now_ms();
        let since_ms = self.learning.miss_state(now_ms);
        let until_ms = since_ms + self.config.cluster.rank_grace_s * 1000;
        let learners = self.workers.count_alive(Role::Learner);
        let all_back = learners >= self.config.learner.ranks as usize;
        // Without any learner nothing is gained by going back, and the first one may bring the state.
        if all_back || (learners > 0 && until_ms <= now_ms) {
            self.rewind();
        } else if until_ms > now_ms {
            self.timers.look_at(until_ms);
        }
    }

    /// A8: back to the last checkpoint; later iterations are taken back and their seeds replayed.
    fn rewind(&mut self) {
        self.close_all_leases();
        self.learning.minting = None;
        self.learning.find_state();
        self.learning.collective.dissolve();
        self.open.clear();
        let TakenBack { from, to } = self.progress.rewind();
        self.prompts.rewind(to);
        self.telemetry.rewound(from, to);
        self.record(Entry::Rewound { from, to });
        let message = format!(
            "no living worker holds the state of iteration {from}: back to checkpoint {to}"
        );
        self.event(EventKind::Rewound, message);
        self.forget_unwanted();
        self.moved();
    }

    /// Everything that open work, a step or a rewind may need.
    fn wanted(&self) -> HashSet<ContentHash> {
        let groups = self.open.groups().flat_map(Group::blobs);
        groups.chain(self.progress.blobs()).collect()
    }

    pub(super) fn forget_unwanted(&mut self) {
        let wanted = self.wanted();
        self.blobs.retain(&wanted);
        self.workers.retain_hints(&wanted);
    }

    /// Of a new coordinator: begins to keep track of everything that the record refers to.
    pub(super) fn track_wanted(&mut self) {
        self.track_checkpoint_files();
        for hash in self.wanted() {
            self.blobs.track(hash);
        }
    }

    pub(super) fn track_checkpoint_files(&mut self) {
        for (hash, path) in self.progress.checkpoint().files() {
            self.blobs.add_file(hash, path);
        }
    }

    /// Sends a group's sampling back to be made again.
    pub(super) fn remake(&mut self, id: GroupId) {
        self.telemetry.totals.groups_remade += 1;
        self.open.set_state(id, GroupState::Queued);
        let message = format!("blobs of group {id} were lost and are made again");
        self.event(EventKind::GroupRemade, message);
    }
}
