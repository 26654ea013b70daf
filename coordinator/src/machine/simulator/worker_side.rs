//! The workers of the virtual world: what they do with answers and tasks, and how they die.

use retouch_proto::task::{Task, TaskFailure, TaskOutcome, TaskResult};
use retouch_proto::worker::{Directive, ReportReply, Role};
use retouch_proto::{BlobAddress, BlobRef, ContentHash, Epoch, LeaseId};

use super::fakes;
use super::world::{ANSWER_MS_MAX, Answer, Event, HEARTBEAT_MS, Message, World};

impl World {
    pub(super) fn lives(&self, worker: usize, life: u64) -> bool {
        let fake = &self.workers[worker];
        fake.alive && fake.life == life
    }

    pub(super) fn start_worker(&mut self, worker: usize) {
        if !self.workers[worker].alive {
            self.worker_starts += 1;
            self.workers[worker].restart();
            self.register(worker);
        }
    }

    pub(super) fn register(&mut self, worker: usize) {
        let fake = &mut self.workers[worker];
        fake.generation = None;
        fake.outstanding = None;
        fake.sequence = 0;
        let (life, registration) = (fake.life, fake.registration());
        self.send(|| {
            Event::Arrives(Message::Register {
                worker,
                life,
                registration: registration.clone(),
            })
        });
        self.after(
            ANSWER_MS_MAX,
            Event::AnswerOverdue {
                worker,
                life,
                sequence: 0,
            },
        );
    }

    pub(super) fn report(&mut self, worker: usize) {
        let fake = &mut self.workers[worker];
        let life = fake.life;
        let Some(report) = fake.report() else { return };
        let sequence = report.sequence;
        self.send(|| {
            Event::Arrives(Message::Report {
                worker,
                life,
                report: report.clone(),
            })
        });
        self.after(
            ANSWER_MS_MAX,
            Event::AnswerOverdue {
                worker,
                life,
                sequence,
            },
        );
    }

    pub(super) fn answer_overdue(&mut self, worker: usize, life: u64, sequence: u64) {
        if !self.lives(worker, life) {
            return;
        }
        let fake = &self.workers[worker];
        match fake.generation {
            None if sequence == 0 => self.register(worker),
            Some(_)
                if fake
                    .outstanding
                    .as_ref()
                    .is_some_and(|waited| waited.sequence == sequence) =>
            {
                self.report(worker);
            }
            _ => {}
        }
    }

    pub(super) fn answered(&mut self, worker: usize, life: u64, answer: Answer) {
        if !self.lives(worker, life) {
            return;
        }
        match answer {
            Answer::Registered(generation) => {
                if self.workers[worker].generation.is_none() {
                    self.workers[worker].generation = Some(generation);
                    self.report(worker);
                }
            }
            Answer::Reply { sequence, reply } => self.replied(worker, sequence, reply),
        }
    }

    pub(super) fn replied(&mut self, worker: usize, sequence: u64, reply: ReportReply) {
        let fake = &mut self.workers[worker];
        if reply.directive == Directive::Reregister {
            // An answer to a report of an older generation says nothing about this one.
            if fake
                .outstanding
                .as_ref()
                .is_some_and(|waited| waited.sequence == sequence)
            {
                self.register(worker);
            }
            return;
        }
        if !fake.acknowledge(sequence) {
            return;
        }
        if reply.directive == Directive::Shutdown {
            // It exits, and is started again unless the run is over.
            self.kill(worker);
            return self.after(2_000, Event::Starts { worker });
        }
        for lease in &reply.cancel {
            fake.running.remove(lease);
        }
        for blob in &reply.prefetch {
            if self.fetch(worker, blob) {
                self.workers[worker].gain(blob.hash);
            }
        }
        for assignment in reply.assignments {
            self.begin_task(worker, assignment.lease, assignment.task);
        }
        let fake = &self.workers[worker];
        let (life, sequence) = (fake.life, fake.sequence);
        let busy = fake.running.len() as u32 >= fake.slots;
        let delay_ms = if busy { HEARTBEAT_MS } else { 1 };
        self.after(
            delay_ms,
            Event::ReportDue {
                worker,
                life,
                sequence,
            },
        );
    }

    pub(super) fn begin_task(&mut self, worker: usize, lease: LeaseId, task: Task) {
        let fake = &mut self.workers[worker];
        let known = fake.running.contains_key(&lease)
            || fake.results.iter().any(|result| result.lease == lease);
        if known {
            return;
        }
        assert!(
            (fake.running.len() as u32) < fake.slots,
            "{} was given more than it can do",
            fake.id
        );
        let life = fake.life;
        let train = match &task {
            Task::Train(task) => Some((task.collective.epoch, task.collective.world as usize)),
            _ => None,
        };
        fake.running.insert(lease, task);
        if self.fault(self.faults.task_hangs) {
            return;
        }
        let delay_ms = self.random.within(50..400);
        match train {
            None => self.after(
                delay_ms,
                Event::TaskEnds {
                    worker,
                    life,
                    lease,
                },
            ),
            Some((epoch, world)) => self.join_barrier(worker, lease, epoch, world),
        }
    }

    /// A step ends on all ranks once all ranks have begun it.
    pub(super) fn join_barrier(
        &mut self,
        worker: usize,
        lease: LeaseId,
        epoch: Epoch,
        world: usize,
    ) {
        let ranks = self.barriers.entry(epoch).or_default();
        ranks.insert((worker, lease));
        if ranks.len() < world {
            return;
        }
        for (worker, lease) in self.barriers.remove(&epoch).unwrap_or_default() {
            let life = self.workers[worker].life;
            let delay_ms = self.random.within(100..600);
            self.after(
                delay_ms,
                Event::TaskEnds {
                    worker,
                    life,
                    lease,
                },
            );
        }
    }

    pub(super) fn task_ends(&mut self, worker: usize, life: u64, lease: LeaseId) {
        if !self.lives(worker, life) {
            return;
        }
        let Some(task) = self.workers[worker].running.remove(&lease) else {
            return;
        };
        let missing: Vec<BlobRef> = fakes::inputs(&task)
            .into_iter()
            .filter(|blob| !self.fetch(worker, blob))
            .collect();
        let outcome = if !missing.is_empty() {
            let lost_blobs = missing.iter().map(|blob| blob.hash).collect();
            TaskOutcome::Failed(TaskFailure {
                reason: "lost blobs".into(),
                lost_blobs,
                retryable: true,
            })
        } else if self.fault(self.faults.task_fails) {
            failed("bad luck")
        } else {
            self.do_task(worker, &task)
        };
        self.workers[worker]
            .results
            .push(TaskResult { lease, outcome });
        self.report(worker);
    }

    pub(super) fn do_task(&mut self, worker: usize, task: &Task) -> TaskOutcome {
        for blob in fakes::inputs(task) {
            self.workers[worker].gain(blob.hash);
        }
        match task {
            Task::Rollout(task) => TaskOutcome::Rollout(self.workers[worker].sample(task)),
            Task::Score(task) => TaskOutcome::Score(fakes::score(task)),
            Task::Train(task) => {
                let result = fakes::train(task);
                self.workers[worker]
                    .blobs
                    .extend([result.state.hash, result.version.hash]);
                if task.checkpoint && task.collective.rank == 0 {
                    let folder = format!("checkpoints/{}", task.iteration);
                    self.disk
                        .insert(format!("{folder}/state.safetensors"), result.state.hash);
                    self.disk
                        .insert(format!("{folder}/version.safetensors"), result.version.hash);
                }
                TaskOutcome::Train(result)
            }
            Task::Mint(task) => TaskOutcome::Mint(fakes::mint(task)),
        }
    }

    pub(super) fn task_breaks(&mut self, worker: usize, life: u64, lease: LeaseId) {
        if self.lives(worker, life) && self.workers[worker].running.remove(&lease).is_some() {
            let outcome = failed("a peer closed the connection");
            self.workers[worker]
                .results
                .push(TaskResult { lease, outcome });
            self.report(worker);
        }
    }

    /// Whether the worker has the blob or can get it from one of the owners it was told.
    pub(super) fn fetch(&self, worker: usize, blob: &BlobRef) -> bool {
        let held_by = |owner: &BlobAddress| match owner {
            BlobAddress::File(path) => self.disk.get(path) == Some(&blob.hash),
            BlobAddress::Grpc(_) => self.workers.iter().any(|fake| {
                fake.alive
                    && fake.registration().blob_address == *owner
                    && fake.blobs.contains(&blob.hash)
            }),
        };
        self.workers[worker].blobs.contains(&blob.hash) || blob.owners.iter().any(held_by)
    }

    pub(super) fn worker_crash(&mut self) {
        let worker = self.random.within(0..self.workers.len() as u64) as usize;
        self.kill(worker);
        let is_learner = self.workers[worker].role == Role::Learner;
        let others = self
            .workers
            .iter()
            .filter(|fake| fake.role == Role::Learner && fake.alive)
            .count();
        let vanishes =
            self.faults.learners_vanish && is_learner && others > 0 && self.random.chance(0.3);
        if !vanishes {
            let delay_ms = self.random.within(10..6_000);
            self.after(delay_ms, Event::Starts { worker });
        }
        self.again(self.faults.worker_crash_ms, Event::WorkerCrash);
    }

    pub(super) fn kill(&mut self, worker: usize) {
        let fake = &mut self.workers[worker];
        fake.alive = false;
        fake.blobs.clear();
        let life = fake.life;
        // Its connection breaks, and the coordinator may notice.
        let waiting = self
            .callers
            .iter()
            .find(|(_, caller)| caller.worker == worker && caller.life == life);
        if let Some((ticket, _)) = waiting
            && self.random.chance(0.5)
        {
            let ticket = *ticket;
            self.after(5, Event::Arrives(Message::HungUp(ticket)));
        }
        self.break_barriers(worker);
    }

    /// Ranks that wait for a dead one notice, or hang until they are told.
    pub(super) fn break_barriers(&mut self, worker: usize) {
        let mut mates = Vec::new();
        for ranks in self.barriers.values_mut() {
            if ranks.iter().any(|(rank, _)| *rank == worker) {
                mates.extend(
                    std::mem::take(ranks)
                        .into_iter()
                        .filter(|(rank, _)| *rank != worker),
                );
            }
        }
        for (mate, lease) in mates {
            let life = self.workers[mate].life;
            if self.random.chance(0.5) {
                self.after(
                    20,
                    Event::TaskBreaks {
                        worker: mate,
                        life,
                        lease,
                    },
                );
            }
        }
    }

    /// A bounded store drops something, not the newest states (the protocol forbids that).
    pub(super) fn blob_loss(&mut self) {
        let worker = self.random.within(0..self.workers.len() as u64) as usize;
        if self.workers[worker].role == Role::Rollout {
            let mut blobs: Vec<ContentHash> = self.workers[worker].blobs.iter().copied().collect();
            blobs.sort();
            let number = self.random.next() as usize;
            if let Some(hash) = blobs.get(number % blobs.len().max(1)) {
                self.workers[worker].lose(*hash);
            }
        }
        self.again(self.faults.blob_loss_ms, Event::BlobLoss);
    }
}

fn failed(reason: &str) -> TaskOutcome {
    let reason = reason.to_owned();
    TaskOutcome::Failed(TaskFailure {
        reason,
        lost_blobs: Vec::new(),
        retryable: true,
    })
}
