//! Work to workers: who gets what, and the answers that carry it.

use retouch_proto::task::{Assignment, RolloutTask, ScoreTask, Task};
use retouch_proto::worker::{Directive, ReportReply, Role};
use retouch_proto::{BlobRef, GroupId, LeaseId, WorkerId};

use super::Machine;
use super::control::Phase;
use super::groups::{Group, GroupState};
use super::io::Output;
use super::leases::Work;
use super::record::Blob;
use super::schedule::{Placement, Problem, TaskNeed, WorkerLoad, solve};

/// Tasks that are given out together.
const BATCH: usize = 256;
/// Hints in one answer.
const PREFETCH_MAX: usize = 64;

impl Machine {
    pub(super) fn dispatch(&mut self) {
        self.update_free();
        if !matches!(self.phase, Phase::Running | Phase::Draining { .. }) {
            return;
        }
        self.dispatch_role(Role::Rollout);
        self.dispatch_role(Role::Reward);
    }

    fn update_free(&mut self) {
        for id in &self.touched {
            match self.workers.get(id) {
                Some(worker) if worker.free() > 0 => {
                    self.free
                        .insert(id, worker.role, worker.leases.len() as u32);
                }
                _ => self.free.remove(id),
            }
        }
    }

    fn dispatch_role(&mut self, role: Role) {
        while self.dispatch_batch(role) {
            self.update_free();
        }
    }

    /// Gives out some tasks; tells whether there may be more to give.
    fn dispatch_batch(&mut self, role: Role) -> bool {
        // In a large cluster nearly all workers are busy, or nearly all wait: neither may cost anything.
        let count = self.free.count(role).min(BATCH);
        let ids: Vec<GroupId> = self.waiting(role).take(count).collect();
        if ids.is_empty() {
            return false;
        }
        let tasks: Vec<TaskNeed<'_>> = ids
            .iter()
            .map(|id| TaskNeed {
                avoid: self.avoided(role, *id),
            })
            .collect();
        // Each task takes one of the first so many, however loaded the others are.
        let avoided = tasks.iter().map(|task| task.avoid.len()).max().unwrap_or(0);
        let names = self.free.least_loaded(role, ids.len() + avoided);
        let workers = names.iter().filter_map(|id| self.load(id)).collect();
        let placements = solve(&Problem { tasks, workers });
        for Placement { task, worker } in &placements {
            self.assign(role, ids[*task], &names[*worker]);
        }
        ids.len() == count && !placements.is_empty()
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
    fn waiting(&self, role: Role) -> Box<dyn Iterator<Item = GroupId> + '_> {
        let open = self.open.values();
        let groups: Box<dyn Iterator<Item = &Group>> = match role {
            Role::Rollout => Box::new(
                open.flat_map(|open| open.queued())
                    .filter(|g| self.can_sample(g)),
            ),
            _ => Box::new(
                open.flat_map(|open| open.sampled())
                    .filter(|g| self.all_available(g.images())),
            ),
        };
        let due = groups.filter(|group| group.not_before_ms <= self.now_ms);
        Box::new(due.map(|group| group.drawn.group))
    }

    fn can_sample(&self, group: &Group) -> bool {
        let policy = group.policy.unwrap_or(self.committed.policy);
        policy
            .adapter
            .is_none_or(|adapter| self.blobs.is_available(adapter.hash))
    }

    /// Who failed the group before, unless nobody else is there.
    fn avoided(&self, role: Role, id: GroupId) -> &[WorkerId] {
        let avoid = self.group(id).map_or(&[][..], |group| &group.avoid);
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
        self.pin_policy(id);
        if role == Role::Rollout {
            self.note_policy(worker, id);
        }
        let lease = self.grant(worker, work);
        self.set_group_state(id, state(lease));
    }

    /// Notes what the worker samples with, for people.
    pub(super) fn note_policy(&mut self, worker: &WorkerId, group: GroupId) {
        let policy = self.group(group).and_then(|group| group.policy);
        if let Some(worker) = self.workers.get_mut(worker) {
            worker.policy = policy;
        }
    }

    /// Answers reports that there is something to say to, or that have waited long enough.
    pub(super) fn answer(&mut self) {
        self.update_free();
        for id in std::mem::take(&mut self.touched) {
            self.answer_one(&id);
        }
    }

    fn answer_one(&mut self, id: &WorkerId) {
        let is_over = self.is_over();
        let Some(worker) = self.workers.get(id) else {
            return;
        };
        let Some(held) = &worker.held else { return };
        let (unsent, cancel) = (worker.unsent(), worker.unwanted());
        let due = held.until_ms <= self.now_ms || is_over;
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
        let committed = self.committed.iteration;
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
        let lost_at_ms = self.now_ms + self.workers.silence_ms_max();
        let Some(held) = self.workers.release(id) else {
            return;
        };
        self.outputs.push_back(Output::Reply(held.ticket, reply));
        if let Some(worker) = self.workers.get_mut(id) {
            worker.lost_at_ms = lost_at_ms;
            worker.dismissed |= dismissed;
        }
        self.free.remove(id);
        self.set_worker_alarm(id);
    }

    fn assignment(&mut self, id: LeaseId) -> Option<Assignment> {
        let lease = self.leases.get(id)?;
        let lease_ms = lease.deadline_ms.saturating_sub(self.now_ms);
        let task = match lease.work {
            Work::Rollout(group) => Task::Rollout(self.rollout_task(group)?),
            Work::Score(group) => Task::Score(self.score_task(group)?),
            Work::Train => Task::Train(self.train_task(id)?),
            Work::Mint => Task::Mint(self.mint_task(id)?),
        };
        Some(Assignment {
            lease: id,
            lease_ms,
            task,
        })
    }

    fn rollout_task(&mut self, id: GroupId) -> Option<RolloutTask> {
        let group = self.group(id)?;
        let row = &self.rows[group.drawn.row as usize];
        let (prompt, requirement) = (row.prompt.clone(), row.requirement.clone());
        let (image, adapter) = (row.image.clone(), group.policy?.adapter);
        let version = adapter.map(|adapter| self.reference(adapter));
        let group_size = self.config.rollout.group_size;
        Some(RolloutTask {
            group: id,
            prompt,
            requirement,
            image,
            version,
            group_size,
        })
    }

    fn score_task(&mut self, id: GroupId) -> Option<ScoreTask> {
        let group = self.group(id)?;
        let row = &self.rows[group.drawn.row as usize];
        let (prompt, requirement) = (row.prompt.clone(), row.requirement.clone());
        let images: Vec<Blob> = group.images().collect();
        let mut images = images
            .into_iter()
            .map(|blob| self.reference(blob))
            .collect::<Vec<BlobRef>>()
            .into_iter();
        let source_png = images.next()?;
        Some(ScoreTask {
            group: id,
            prompt,
            requirement,
            source_png,
            edits_png: images.collect(),
        })
    }

    fn take_prefetch(&mut self, id: &WorkerId) -> Vec<BlobRef> {
        let Some(worker) = self.workers.get_mut(id) else {
            return Vec::new();
        };
        let count = worker.prefetch.len().min(PREFETCH_MAX);
        let mut blobs: Vec<Blob> = worker.prefetch.drain(..count).collect();
        // Whoever is gone since, or no longer wanted, is not worth a fetch.
        blobs.retain(|blob| self.blobs.is_available(blob.hash));
        blobs.into_iter().map(|blob| self.reference(blob)).collect()
    }

    /// A reference to a blob for somebody who needs it.
    pub(super) fn reference(&mut self, blob: Blob) -> BlobRef {
        self.blobs.reference(blob, &self.workers)
    }
}
