//! What a worker knows of its own work: leases, results, blob changes. No IO, no
//! clock.

use std::collections::{BTreeMap, HashMap};

use retouch_proto::{
    BlobRef, ContentHash, Generation, Iteration, LeaseId,
    limits::{HASHES_MAX, SLOTS_MAX},
    task::{Assignment, Task, TaskOutcome, TaskResult},
    worker::{Directive, Registration, Report, ReportReply, Role, RunningTask, WorkerState},
};
use tokio_util::sync::CancellationToken;

use crate::blobs::Changes;

/// An assignment and the token that tells when it is not wanted any more.
#[derive(Clone, Debug)]
pub struct Work {
    /// What to do.
    pub assignment: Assignment,
    /// Cancelled when the coordinator abandons the lease, and when the process ends.
    pub cancel: CancellationToken,
}

/// What a reply asks for.
#[derive(Debug)]
pub(super) struct Wanted {
    pub(super) work: Vec<Work>,
    pub(super) prefetch: Vec<BlobRef>,
    pub(super) committed: Iteration,
    pub(super) directive: Directive,
    /// The reply said anything new.
    pub(super) news: bool,
}

/// Whether an answered report told anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Told {
    News,
    Nothing,
}

#[derive(Debug)]
struct Running {
    task: RunningTask,
    cancel: CancellationToken,
}

/// A worker's own account; what a report says is made from it.
#[derive(Debug)]
pub(super) struct Books {
    registration: Registration,
    generation: Generation,
    sequence: u64,
    state: WorkerState,
    committed: Iteration,
    running: BTreeMap<LeaseId, Running>,
    /// Finished, but no report that said so has been answered.
    finished: BTreeMap<LeaseId, (RunningTask, TaskOutcome)>,
    /// Blobs that came (true) or went, not told yet.
    blobs: HashMap<ContentHash, bool>,
}

impl Books {
    /// The books of a worker that is about to register.
    pub(super) fn new(registration: Registration) -> Self {
        Self {
            registration,
            generation: Generation::default(),
            sequence: 0,
            state: WorkerState::Loading,
            committed: Iteration::default(),
            running: BTreeMap::new(),
            finished: BTreeMap::new(),
            blobs: HashMap::new(),
        }
    }

    /// What to register with: who this is, what it holds and runs.
    pub(super) fn registration(&self, holds: Vec<ContentHash>) -> Registration {
        let running = self.running.values().map(|running| running.task);
        let finished = self.finished.values().map(|(task, _)| *task);
        let mut registration = self.registration.clone();
        registration.running = running.chain(finished).take(SLOTS_MAX).collect();
        registration.holds = holds;
        registration.holds.truncate(HASHES_MAX);
        registration
    }

    /// Begins a new generation.
    pub(super) fn registered(&mut self, generation: Generation) {
        self.generation = generation;
        self.sequence = 0;
        // The registration has said what is held. Results stay: they are about groups and count under any generation.
        self.blobs.clear();
    }

    /// Leaving is for good: models may be loaded after the process was told to stop.
    pub(super) fn set_state(&mut self, state: WorkerState) {
        if !self.is_leaving() {
            self.state = state;
        }
    }

    pub(super) fn is_leaving(&self) -> bool {
        self.state == WorkerState::Leaving
    }

    pub(super) fn is_idle(&self) -> bool {
        self.running.is_empty() && self.finished.is_empty()
    }

    /// The next report.
    pub(super) fn report(&mut self, changes: Changes) -> Report {
        self.blobs
            .extend(changes.added.into_iter().map(|hash| (hash, true)));
        self.blobs
            .extend(changes.dropped.into_iter().map(|hash| (hash, false)));
        self.sequence += 1;
        // Half a list's limit for each of the two; what is left over is told by the next report.
        let told = |held: bool| {
            let told = self.blobs.iter().filter(move |(_, now)| **now == held);
            told.map(|(hash, _)| *hash).take(HASHES_MAX / 2).collect()
        };
        let result = |(lease, (_, outcome)): (&LeaseId, &(RunningTask, TaskOutcome))| TaskResult {
            lease: *lease,
            outcome: outcome.clone(),
        };
        Report {
            worker: self.registration.worker.clone(),
            generation: self.generation,
            sequence: self.sequence,
            state: self.state,
            slots_free: self.slots_free(),
            running: self.running.keys().copied().take(SLOTS_MAX).collect(),
            results: self.finished.iter().map(result).take(SLOTS_MAX).collect(),
            blobs_added: told(true),
            blobs_dropped: told(false),
        }
    }

    pub(super) fn slots_free(&self) -> u32 {
        // A cancelled task may sit on the device for minutes; its slot is free at once, so that the next one's blobs
        // are fetched meanwhile.
        let wanted = self
            .running
            .values()
            .filter(|running| !running.cancel.is_cancelled())
            .count();
        match self.state {
            WorkerState::Ready => self.registration.slots.saturating_sub(wanted as u32),
            WorkerState::Loading | WorkerState::Leaving => 0,
        }
    }

    /// Forgets what an answered report has told.
    pub(super) fn acknowledge(&mut self, report: &Report) -> Told {
        for result in &report.results {
            self.finished.remove(&result.lease);
        }
        let told = report.blobs_added.iter().map(|hash| (hash, true));
        for (hash, held) in told.chain(report.blobs_dropped.iter().map(|hash| (hash, false))) {
            // It may have gone, or come back, since the report was made: then that is still to be told.
            if self.blobs.get(hash) == Some(&held) {
                self.blobs.remove(hash);
            }
        }
        let silent = report.results.is_empty()
            && report.blobs_added.is_empty()
            && report.blobs_dropped.is_empty();
        if silent { Told::Nothing } else { Told::News }
    }

    /// Takes a reply in.
    pub(super) fn apply(&mut self, reply: ReportReply) -> Wanted {
        let mut news = !reply.prefetch.is_empty() || self.committed != reply.committed;
        self.committed = reply.committed;
        for lease in &reply.cancel {
            news |= self.cancel(lease);
        }
        let mut work = Vec::new();
        for assignment in reply.assignments {
            work.extend(self.accept(assignment));
        }
        news |= !work.is_empty();
        Wanted {
            work,
            prefetch: reply.prefetch,
            committed: reply.committed,
            directive: reply.directive,
            news,
        }
    }

    /// Notes how a task ended. Nobody waits for what was cancelled.
    pub(super) fn finish(&mut self, lease: LeaseId, outcome: TaskOutcome) {
        let Some(running) = self.running.remove(&lease) else {
            return;
        };
        if !running.cancel.is_cancelled() {
            self.finished.insert(lease, (running.task, outcome));
        }
    }

    /// Abandons everything.
    pub(super) fn cancel_all(&self) {
        self.running
            .values()
            .for_each(|running| running.cancel.cancel());
    }

    fn cancel(&mut self, lease: &LeaseId) -> bool {
        let known = self.finished.remove(lease).is_some();
        let Some(running) = self.running.get(lease) else {
            return known;
        };
        let fresh = !running.cancel.is_cancelled();
        running.cancel.cancel();
        fresh
    }

    fn accept(&mut self, assignment: Assignment) -> Option<Work> {
        let lease = assignment.lease;
        // Replies repeat what the coordinator does not yet know to have arrived.
        if self.running.contains_key(&lease) || self.finished.contains_key(&lease) {
            return None;
        }
        let cancel = CancellationToken::new();
        let task = running_task(&assignment);
        self.running.insert(
            lease,
            Running {
                task,
                cancel: cancel.clone(),
            },
        );
        Some(Work { assignment, cancel })
    }
}

fn running_task(assignment: &Assignment) -> RunningTask {
    let (kind, group) = match &assignment.task {
        Task::Rollout(task) => (Role::Rollout, Some(task.group)),
        Task::Score(task) => (Role::Reward, Some(task.group)),
        Task::Train(_) | Task::Mint(_) => (Role::Learner, None),
    };
    RunningTask {
        lease: assignment.lease,
        kind,
        group,
    }
}
