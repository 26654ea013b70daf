//! What workers say: registrations, reports, silence.

use std::collections::BTreeSet;

use retouch_proto::status::EventKind;
use retouch_proto::worker::{Directive, Registration, Report, Role, RunningTask, WorkerState};
use retouch_proto::{LeaseId, WorkerId};

use super::Machine;
use super::groups::GroupState;
use super::io::{Output, Ticket};
use super::leases::Work;
use super::phase::Phase;
use super::timers::Timer;
use super::workers::{Held, HeldReport};

impl Machine {
    pub(super) fn register(&mut self, ticket: Ticket, registration: Registration) {
        let id = registration.worker.clone();
        if let Some(old) = self.workers.release(&id) {
            self.reply_nothing(old.ticket, Directive::Reregister);
        }
        if self.workers.get(&id).is_some_and(|old| old.is_alive()) {
            self.lose_worker(&id, "registered again");
        }
        self.clear_worker_timer(&id);
        let (holds, running) = (registration.holds.clone(), registration.running.clone());
        let role = registration.role;
        let now_ms = self.timers.now_ms();
        let generation = self.workers.register(registration, now_ms);
        self.blobs.add(&id, holds);
        self.workers.touch(&id);
        self.set_worker_timer(&id);
        self.outputs
            .push_back(Output::Registered(ticket, generation));
        if self.is_over() {
            return;
        }
        self.event(
            EventKind::WorkerJoined,
            format!("{role} worker {id} joined as generation {generation}"),
        );
        for task in running {
            self.adopt(&id, role, task);
        }
        self.stop_awaiting_if_everyone_is_back();
        self.moved();
    }

    /// A registering worker goes on with what is still wanted; the rest is cancelled by the
    /// first reply, since no lease speaks for it. A run that stops has abandoned what was open.
    fn adopt(&mut self, worker: &WorkerId, role: Role, task: RunningTask) {
        let stops = matches!(self.phase, Phase::Stopping { .. });
        let Some(id) = task.group.filter(|_| task.kind == role && !stops) else {
            return;
        };
        let Some(group) = self.open.group(id) else {
            return;
        };
        let (work, state) = match (role, group.state()) {
            (Role::Rollout, GroupState::Queued) => {
                (Work::Rollout(id), GroupState::Sampling(task.lease))
            }
            (Role::Reward, GroupState::Sampled) => {
                (Work::Score(id), GroupState::Scoring(task.lease))
            }
            _ => return,
        };
        // Another worker can't have it; this one may name it twice.
        if self.leases.get(task.lease).is_some() {
            return;
        }
        self.adopt_lease(task.lease, worker, work);
        if role == Role::Rollout {
            self.note_policy(worker, id);
        }
        self.open.set_state(id, state);
    }

    pub(super) fn report(&mut self, ticket: Ticket, report: Report) {
        if !self.workers.is_current(&report.worker, report.generation) {
            let directive = self.directive_to_the_gone(&report);
            return self.reply_nothing(ticket, directive);
        }
        let id = report.worker.clone();
        self.blobs.add(&id, report.blobs_added.iter().copied());
        for hash in &report.blobs_dropped {
            self.blobs.remove(&id, *hash);
        }
        self.take_results(&id, report.results.clone());
        // Results want their answer at once, and so does whoever has no room for work.
        let patient = report.results.is_empty() && report.slots_free > 0 && !self.is_over();
        let wait_ms = if patient {
            self.config.cluster.report_wait_ms_max
        } else {
            0
        };
        let finished: BTreeSet<LeaseId> =
            report.results.iter().map(|result| result.lease).collect();
        let now_ms = self.timers.now_ms();
        let held = HeldReport {
            ticket,
            until_ms: now_ms + wait_ms,
            slots_free: report.slots_free,
            running: report
                .running
                .iter()
                .copied()
                .filter(|lease| !finished.contains(lease))
                .collect(),
        };
        match self.workers.hold(&report, held, now_ms) {
            Held::Late => return self.reply_nothing(ticket, Directive::Continue),
            Held::InPlaceOf(older) => self.reply_nothing(older, Directive::Continue),
            Held::First => {}
        }
        if report.state == WorkerState::Leaving {
            self.leaves_by_itself(&id);
        }
        self.workers.touch(&id);
        self.set_worker_timer(&id);
    }

    /// Answers without saying anything: nobody acts on this answer.
    pub(super) fn reply_nothing(&mut self, ticket: Ticket, directive: Directive) {
        let reply = self.nothing(directive);
        self.outputs.push_back(Output::Reply(ticket, reply));
    }

    pub(super) fn hung_up(&mut self, ticket: Ticket) {
        if let Some(id) = self.workers.hung_up(ticket, self.timers.now_ms()) {
            self.workers.touch(&id);
            self.set_worker_timer(&id);
        }
    }

    /// Makes sure that the machine wakes when something about this worker is due.
    pub(super) fn set_worker_timer(&mut self, id: &WorkerId) {
        let Some(worker) = self.workers.get(id).filter(|worker| worker.is_alive()) else {
            return;
        };
        let held_until_ms = worker.held.as_ref().map_or(u64::MAX, |held| held.until_ms);
        let at_ms = worker.lost_at_ms.min(held_until_ms);
        self.clear_worker_timer(id);
        self.timers.set(at_ms, Timer::Worker(id.clone()));
        if let Some(worker) = self.workers.get_mut(id) {
            worker.timer_ms = Some(at_ms);
        }
    }

    fn clear_worker_timer(&mut self, id: &WorkerId) {
        let worker = self.workers.get_mut(id);
        if let Some(at_ms) = worker.and_then(|worker| worker.timer_ms.take()) {
            self.timers.cancel(at_ms, Timer::Worker(id.clone()));
        }
    }

    pub(super) fn worker_timer(&mut self, id: WorkerId) {
        if let Some(worker) = self.workers.get_mut(&id) {
            worker.timer_ms = None;
        }
        let Some(worker) = self.workers.get(&id).filter(|worker| worker.is_alive()) else {
            return;
        };
        let now_ms = self.timers.now_ms();
        if worker.held.is_some() {
            // Answered by the end of this step if it is due.
            self.workers.touch(&id);
        } else if worker.lost_at_ms <= now_ms {
            let silent_ms = now_ms - worker.last_seen_ms;
            self.lose_worker(&id, &format!("silent for {silent_ms} ms"));
        } else {
            self.set_worker_timer(&id);
        }
    }
}
