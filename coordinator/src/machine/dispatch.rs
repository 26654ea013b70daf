//! Work to workers: who gets what, and the answers that carry it.

use retouch_proto::worker::{Directive, ReportReply, Role};
use retouch_proto::{BlobRef, GroupId, LeaseId, WorkerId};

use super::Machine;
use super::groups::{Group, GroupState};
use super::io::Output;
use super::leases::Work;
use super::record::Blob;
use super::schedule::{Placement, Problem, TaskNeed, WorkerLoad, solve};

/// Tasks that are given out together.
const BATCH: usize = 256;
/// Hints in one answer.
const PREFETCH_MAX: usize = 64;

/// How a batch of tasks was given out.
#[derive(Debug, PartialEq, Eq)]
enum Batch {
    /// It was as large as may be; there may be more to give.
    Full,
    /// There is no more to give.
    Last,
}

impl Machine {
    pub(super) fn dispatch(&mut self) {
        self.workers.update_free();
        if self.phase.is_active() {
            self.dispatch_role(Role::Rollout);
            self.dispatch_role(Role::Reward);
        }
    }

    fn dispatch_role(&mut self, role: Role) {
        while self.dispatch_batch(role) == Batch::Full {
            self.workers.update_free();
        }
    }

    fn dispatch_batch(&mut self, role: Role) -> Batch {
        // In a large cluster nearly all workers are busy, or nearly all wait: neither may cost anything.
        let count = self.workers.count_free(role).min(BATCH);
        let ids: Vec<GroupId> = self.waiting(role).take(count).collect();
        if ids.is_empty() {
            return Batch::Last;
        }
        let need = |id: &GroupId| TaskNeed {
            avoid: self.avoided(role, *id),
        };
        let tasks: Vec<TaskNeed<'_>> = ids.iter().map(need).collect();
        // Each task takes one of the first few, however loaded the others are: as many as there are tasks, and
        // one more for each that a task avoids.
        let avoided = tasks.iter().map(|task| task.avoid.len()).max().unwrap_or(0);
        let names = self.workers.least_loaded(role, ids.len() + avoided);
        let workers = names.iter().filter_map(|id| self.load(id)).collect();
        let placements = solve(&Problem { tasks, workers });
        for Placement { task, worker } in &placements {
            self.assign(role, ids[*task], &names[*worker]);
        }
        // Without a placement the same tasks would come again for ever.
        match ids.len() == count && !placements.is_empty() {
            true => Batch::Full,
            false => Batch::Last,
        }
    }

    fn load<'a>(&'a self, id: &'a WorkerId) -> Option<WorkerLoad<'a>> {
        let worker = self.workers.get(id)?;
        Some(WorkerLoad {
            id,
            free: worker.free(),
            running: worker.leases.len() as u32,
        })
    }

    /// Groups that a worker of this role could take now, oldest iteration first.
    fn waiting(&self, role: Role) -> impl Iterator<Item = GroupId> {
        let groups: Box<dyn Iterator<Item = &Group>> = match role {
            Role::Rollout => Box::new(self.open.queued().filter(|group| self.can_sample(group))),
            _ => Box::new(self.open.sampled().filter(|group| self.can_score(group))),
        };
        let now_ms = self.timers.now_ms();
        let due = groups.filter(move |group| group.not_before_ms <= now_ms);
        due.map(|group| group.drawn.group)
    }

    fn can_sample(&self, group: &Group) -> bool {
        let policy = self.progress.policy_of(group.drawn.group.iteration);
        self.blobs.are_available(policy.adapter.into_iter())
    }

    fn can_score(&self, group: &Group) -> bool {
        self.blobs.are_available(group.images())
    }

    /// Who failed the group before. If nobody else is there, they may try again rather than wait for somebody to join.
    fn avoided(&self, role: Role, id: GroupId) -> &[WorkerId] {
        let avoid = self.open.group(id).map_or(&[][..], |group| &group.avoid);
        let others = || self.workers.alive(role).any(|(id, _)| !avoid.contains(id));
        if avoid.is_empty() || others() {
            avoid
        } else {
            &[]
        }
    }

    fn assign(&mut self, role: Role, id: GroupId, worker: &WorkerId) {
        let (work, state): (Work, fn(LeaseId) -> GroupState) = match role {
            Role::Rollout => (Work::Rollout(id), GroupState::Sampling),
            _ => (Work::Score(id), GroupState::Scoring),
        };
        if role == Role::Rollout {
            self.note_policy(worker, id);
        }
        let lease = self.grant(worker, work);
        self.open.set_state(id, state(lease));
    }

    /// Notes what the worker samples with, for people.
    pub(super) fn note_policy(&mut self, worker: &WorkerId, group: GroupId) {
        let policy = self.progress.policy_of(group.iteration);
        if let Some(worker) = self.workers.get_mut(worker) {
            worker.policy = Some(policy);
        }
    }

    /// Answers reports that there is something to say to, or that have waited long enough.
    pub(super) fn answer(&mut self) {
        for id in self.workers.take_touched() {
            self.answer_one(&id);
        }
    }

    fn answer_one(&mut self, id: &WorkerId) {
        // Of a suspension workers hear nothing: they wait for the next coordinator.
        let is_over = self.is_over() && !self.phase.is_suspended();
        let Some(worker) = self.workers.get(id) else {
            return;
        };
        let Some(held) = &worker.held else { return };
        let (unsent, cancel) = (worker.unsent(), worker.unwanted());
        let due = held.until_ms <= self.timers.now_ms() || is_over;
        if !due && unsent.is_empty() && cancel.is_empty() && worker.prefetch.is_empty() {
            return;
        }
        let directive = if is_over {
            Directive::Shutdown
        } else {
            Directive::Continue
        };
        let assignments = unsent
            .into_iter()
            .filter_map(|lease| self.assignment(lease))
            .collect();
        let prefetch = self.take_prefetch(id);
        let committed = self.progress.committed().iteration;
        let reply = ReportReply {
            assignments,
            cancel,
            prefetch,
            directive,
            committed,
        };
        self.send(id, reply);
    }

    pub(super) fn send(&mut self, id: &WorkerId, reply: ReportReply) {
        let dismissed = reply.directive == Directive::Shutdown;
        let lost_at_ms = self.timers.now_ms() + self.workers.silence_ms_max();
        let Some(held) = self.workers.release(id) else {
            return;
        };
        self.outputs.push_back(Output::Reply(held.ticket, reply));
        if let Some(worker) = self.workers.get_mut(id) {
            worker.lost_at_ms = lost_at_ms;
            worker.dismissed |= dismissed;
        }
        self.set_worker_timer(id);
    }

    fn take_prefetch(&mut self, id: &WorkerId) -> Vec<BlobRef> {
        let Some(worker) = self.workers.get_mut(id) else {
            return Vec::new();
        };
        let count = worker.prefetch.len().min(PREFETCH_MAX);
        let mut blobs: Vec<Blob> = worker.prefetch.drain(..count).collect();
        // What nobody has any more, or nobody wants, is not worth a fetch.
        blobs.retain(|blob| self.blobs.is_available(blob.hash));
        self.references(blobs)
    }
}
