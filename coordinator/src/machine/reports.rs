//! What workers say: registrations, reports, silence.

use std::collections::BTreeSet;

use retouch_proto::status::EventKind;
use retouch_proto::worker::{Directive, Registration, Report, Role, RunningTask};
use retouch_proto::{LeaseId, WorkerId};

use super::control::Phase;
use super::groups::GroupState;
use super::io::{Output, Ticket};
use super::leases::{Lease, Work};
use super::workers::HeldReport;
use super::{Alarm, Machine};

impl Machine {
    pub(super) fn register(&mut self, ticket: Ticket, registration: Registration) {
        let id = registration.worker.clone();
        if let Some(old) = self.workers.release(&id) {
            self.reply_nothing(old.ticket, Directive::Reregister);
        }
        if self.workers.get(&id).is_some_and(|old| old.is_alive()) {
            self.lose_worker(&id, "registered again");
        }
        self.clear_worker_alarm(&id);
        let (holds, running) = (registration.holds.clone(), registration.running.clone());
        let role = registration.role;
        let generation = self.workers.register(registration, self.now_ms);
        self.blobs.add(&id, holds);
        self.touch(&id);
        self.set_worker_alarm(&id);
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
        self.end_adopting_if_everyone_is_back();
        self.progress();
    }

    /// A registering worker goes on with what is still wanted; the rest is cancelled by the
    /// first reply, since no lease speaks for it. A run that stops has abandoned what was open.
    fn adopt(&mut self, worker: &WorkerId, role: Role, task: RunningTask) {
        let stops = matches!(self.phase, Phase::Stopping { .. });
        let Some(id) = task.group.filter(|_| task.kind == role && !stops) else {
            return;
        };
        let Some(group) = self.group(id) else { return };
        let (work, state) = match (role, group.state()) {
            (Role::Rollout, GroupState::Queued) => {
                (Work::Rollout(id), GroupState::Sampling(task.lease))
            }
            (Role::Reward, GroupState::Sampled) => {
                (Work::Score(id), GroupState::Scoring(task.lease))
            }
            _ => return,
        };
        if self.leases.get(task.lease).is_some() {
            return;
        }
        let deadline_ms = self.lease_deadline_ms();
        let lease = Lease {
            worker: worker.clone(),
            work,
            deadline_ms,
        };
        self.leases.adopt(task.lease, lease);
        self.alarms.insert((deadline_ms, Alarm::Lease(task.lease)));
        self.pin_policy(id);
        if role == Role::Rollout {
            self.note_policy(worker, id);
        }
        self.set_group_state(id, state);
        if let Some(worker) = self.workers.get_mut(worker) {
            worker.leases.insert(task.lease);
        }
    }

    pub(super) fn report(&mut self, ticket: Ticket, report: Report) {
        if !self.workers.is_current(&report.worker, report.generation) {
            if self.tell_again(ticket, &report) {
                return;
            }
            return self.reply_nothing(ticket, Directive::Reregister);
        }
        let id = report.worker.clone();
        self.blobs.add(&id, report.blobs_added.iter().copied());
        for hash in &report.blobs_dropped {
            self.looks_for_lost |= self.blobs.remove(&id, *hash);
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
        let held = HeldReport {
            ticket,
            until_ms: self.now_ms + wait_ms,
            slots_free: report.slots_free,
            running: report
                .running
                .iter()
                .copied()
                .filter(|lease| !finished.contains(lease))
                .collect(),
        };
        match self.workers.hold(&report, held, self.now_ms) {
            None => self.reply_nothing(ticket, Directive::Continue),
            Some(older) => {
                if let Some(older) = older {
                    self.reply_nothing(older, Directive::Continue);
                }
                self.touch(&id);
                self.set_worker_alarm(&id);
            }
        }
    }

    /// Answers without saying anything: nobody acts on this answer.
    pub(super) fn reply_nothing(&mut self, ticket: Ticket, directive: Directive) {
        let reply = self.nothing(directive);
        self.outputs.push_back(Output::Reply(ticket, reply));
    }

    pub(super) fn hung_up(&mut self, ticket: Ticket) {
        if let Some((id, _)) = self.workers.hung_up(ticket, self.now_ms) {
            self.touch(&id);
            self.set_worker_alarm(&id);
        }
    }

    /// Makes sure that the machine wakes when something about this worker is due.
    pub(super) fn set_worker_alarm(&mut self, id: &WorkerId) {
        let Some(worker) = self.workers.get(id).filter(|worker| worker.is_alive()) else {
            return;
        };
        let held_until_ms = worker.held.as_ref().map_or(u64::MAX, |held| held.until_ms);
        let at_ms = worker.lost_at_ms.min(held_until_ms);
        self.clear_worker_alarm(id);
        self.alarms.insert((at_ms, Alarm::Worker(id.clone())));
        if let Some(worker) = self.workers.get_mut(id) {
            worker.alarm_ms = Some(at_ms);
        }
    }

    pub(super) fn clear_worker_alarm(&mut self, id: &WorkerId) {
        let worker = self.workers.get_mut(id);
        if let Some(at_ms) = worker.and_then(|worker| worker.alarm_ms.take()) {
            self.alarms.remove(&(at_ms, Alarm::Worker(id.clone())));
        }
    }

    pub(super) fn worker_alarm(&mut self, id: WorkerId) {
        let Some(worker) = self.workers.get(&id).filter(|worker| worker.is_alive()) else {
            return;
        };
        if worker.held.is_some() {
            // Answered by the end of this step if it is due.
            self.touch(&id);
        } else if worker.lost_at_ms <= self.now_ms {
            let silent_ms = self.now_ms - worker.last_seen_ms;
            self.lose_worker(&id, &format!("silent for {silent_ms} ms"));
        } else {
            self.set_worker_alarm(&id);
        }
    }

    pub(super) fn touch(&mut self, id: &WorkerId) {
        self.touched.insert(id.clone());
    }
}
