//! Why nothing moves, by name.

use std::collections::BTreeSet;

use retouch_proto::status::{EventKind, Stall};
use retouch_proto::worker::Role;

use super::Machine;
use super::leases::{Lease, Work};
use super::phase::Phase;
use super::timers::Timer;

/// How often stalls are looked for.
const STALL_CHECK_MS: u64 = 5_000;

impl Machine {
    /// Sets the timer for the next look.
    pub(super) fn watch_for_stalls(&mut self) {
        let at_ms = self.timers.now_ms() + STALL_CHECK_MS;
        self.timers.set(at_ms, Timer::Stalls);
    }

    /// Reports each cause once until something moves again.
    pub(super) fn look_for_stalls(&mut self) {
        self.watch_for_stalls();
        for stall in self.stalls(self.timers.now_ms()) {
            if self.telemetry.is_new_stall(&stall.cause) {
                self.event(EventKind::Stalled, stall.cause);
            }
        }
    }

    /// Causes, if nothing has moved for longer than a worker may be silent.
    pub(super) fn stalls(&self, now_ms: u64) -> Vec<Stall> {
        let for_ms = self.telemetry.still_ms(now_ms);
        let moves = for_ms <= self.workers.silence_ms_max();
        if moves || matches!(self.phase, Phase::Paused | Phase::Over { .. }) {
            return Vec::new();
        }
        let mut causes = BTreeSet::new();
        causes.extend(self.missing_workers());
        causes.extend(self.missing_learners());
        causes.extend(self.missing_state());
        causes.extend(self.slow_work(now_ms));
        causes.extend(self.telemetry.shortages().cloned());
        causes
            .into_iter()
            .map(|cause| Stall { cause, for_ms })
            .collect()
    }

    fn missing_workers(&self) -> Vec<String> {
        let queued: u32 = self.open.iter().map(|open| open.counts().queued).sum();
        let sampled: u32 = self.open.iter().map(|open| open.counts().sampled).sum();
        let missing = |(role, groups): (Role, u32)| {
            let nobody = groups > 0 && self.workers.count_ready(role) == 0;
            nobody.then(|| {
                format!(
                    "{groups} groups wait for a {role} worker, and {}",
                    self.presence(role)
                )
            })
        };
        [(Role::Rollout, queued), (Role::Reward, sampled)]
            .into_iter()
            .filter_map(missing)
            .collect()
    }

    fn missing_learners(&self) -> Option<String> {
        let next = self.open.get(self.progress.next());
        let sealed = next.is_some_and(|open| open.sealed.is_some());
        let ranks = self.config.learner.ranks as usize;
        let ready = self.workers.count_ready(Role::Learner);
        let missing = sealed && !self.learning.is_training() && ready < ranks;
        missing.then(|| {
            format!(
                "{ready} of {ranks} learner ranks are ready, and {}",
                self.presence(Role::Learner)
            )
        })
    }

    fn presence(&self, role: Role) -> String {
        match self.workers.alive(role).count() {
            0 => "none is registered".to_owned(),
            alive => format!(
                "{alive} registered, {} of them ready",
                self.workers.count_ready(role)
            ),
        }
    }

    fn missing_state(&self) -> Option<String> {
        let lost = !self.is_state_available();
        lost.then(|| {
            format!(
                "no living worker holds the state of iteration {}",
                self.progress.committed().iteration
            )
        })
    }

    /// Tasks that have used up half of their time.
    fn slow_work(&self, now_ms: u64) -> Vec<String> {
        let half_ms = self.config.cluster.lease_s * 500;
        let slow = self
            .leases
            .iter()
            .filter(|(_, lease)| lease.deadline_ms < now_ms + half_ms);
        slow.map(|(_, lease)| slow_message(lease, self.config.cluster.lease_s))
            .collect()
    }
}

fn slow_message(lease: &Lease, lease_s: u64) -> String {
    let work = match lease.work {
        Work::Rollout(group) => format!("sampling group {group}"),
        Work::Score(group) => format!("scoring group {group}"),
        Work::Train => "training".to_owned(),
        Work::Mint => "minting the ranks' unique id".to_owned(),
    };
    format!(
        "{} has been {work} for more than half of lease_s = {lease_s}",
        lease.worker
    )
}
