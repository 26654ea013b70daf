//! The workers of the virtual world: what they do with answers and tasks, and how they die.

use retouch_proto::run_folder::CheckpointFile;
use retouch_proto::task::{Task, TaskFailure, TaskOutcome, TaskResult};
use retouch_proto::worker::{Directive, ReportReply};
use retouch_proto::{BlobRef, Epoch, LeaseId};

use super::events::{Answer, Event, Message};
use super::fakes;
use super::network::Way;
use super::scenario::Stage;
use super::world::{ANSWER_MS_MAX, Condition, HEARTBEAT_MS, World};

impl World {
    pub(super) fn lives(&self, worker: usize, life: u64) -> bool {
        let fake = &self.workers[worker];
        fake.alive && fake.life == life
    }

    pub(super) fn start_worker(&mut self, worker: usize) {
        if !self.workers[worker].alive && !self.conditions[worker].away {
            self.tally.worker_starts += 1;
            self.workers[worker].restart();
            self.conditions[worker] = Condition::default();
            let life = self.workers[worker].life;
            self.tell(self.workers[worker].id.as_str(), || {
                format!("starts, life {life}")
            });
            self.register(worker);
        }
    }

    pub(super) fn register(&mut self, worker: usize) {
        let fake = &mut self.workers[worker];
        fake.generation = None;
        // Reports are numbered on: a late answer to one of an older generation is an answer to no newer one.
        fake.outstanding = None;
        let (life, registration) = (fake.life, fake.registration());
        let message = Message::Register {
            worker,
            life,
            registration,
        };
        self.send_up(worker, life, 0, message);
    }

    /// Says something to the coordinator, and waits for the answer for so long.
    fn send_up(&mut self, worker: usize, life: u64, sequence: u64, message: Message) {
        self.send(worker, Way::Up, Event::Arrives(Box::new(message)));
        let overdue = Event::AnswerOverdue {
            worker,
            life,
            sequence,
        };
        self.after(ANSWER_MS_MAX, overdue);
    }

    pub(super) fn report(&mut self, worker: usize) {
        let fake = &mut self.workers[worker];
        let life = fake.life;
        let Some(report) = fake.report() else { return };
        let sequence = report.sequence;
        let message = Message::Report {
            worker,
            life,
            report,
        };
        self.send_up(worker, life, sequence, message);
    }

    /// Time for the next report, unless something was reported since.
    pub(super) fn report_due(&mut self, worker: usize, life: u64, sequence: u64) {
        if self.lives(worker, life) && self.workers[worker].sequence == sequence {
            self.report(worker);
        }
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
        if matches!(reply.directive, Directive::Shutdown | Directive::Restart) {
            if fake.leaving {
                return self.leave(worker);
            }
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
        let busy = fake.leaving || fake.running.len() as u32 >= fake.slots;
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

    /// A worker that was told to end has nothing left to do. It may come back.
    fn leave(&mut self, worker: usize) {
        self.tell(self.workers[worker].id.as_str(), || "has left".into());
        self.kill(worker);
        match self.random.chance(0.5) {
            true => self.conditions[worker].away = true,
            false => self.after(3_000, Event::Starts { worker }),
        }
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
        let fake = &self.workers[worker];
        self.tell(fake.id.as_str(), || described(&fake.running[&lease]));
        let condition = self.conditions[worker];
        if self.now_ms < condition.hangs_until_ms {
            return;
        }
        let slow = if self.now_ms < condition.slow_until_ms {
            20
        } else {
            1
        };
        let delay_ms = self.random.within(250..800) * slow;
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
        let complete = ranks.len() == world;
        self.meet_doom(worker);
        if !complete || !self.workers[worker].alive {
            return;
        }
        for (worker, lease) in self.barriers.remove(&epoch).unwrap_or_default() {
            let life = self.workers[worker].life;
            let delay_ms = self.random.within(800..1_500);
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
        let outcome = self.attempt(worker, &task);
        if let TaskOutcome::Failed(failure) = &outcome {
            self.tell(self.workers[worker].id.as_str(), || {
                format!("fails: {}", failure.reason)
            });
        }
        self.workers[worker]
            .results
            .push(TaskResult { lease, outcome });
        self.report(worker);
    }

    fn attempt(&mut self, worker: usize, task: &Task) -> TaskOutcome {
        let missing: Vec<BlobRef> = fakes::inputs(task)
            .into_iter()
            .filter(|blob| !self.fetch(worker, blob))
            .collect();
        if !missing.is_empty() {
            let lost_blobs = missing.iter().map(|blob| blob.hash).collect();
            return TaskOutcome::Failed(TaskFailure {
                lost_blobs,
                ..TaskFailure::retryable("lost blobs")
            });
        }
        if let Some(retryable) = self.poisoned(task) {
            self.tally.poisoned += 1;
            return failed(POISON, retryable);
        }
        if self.fault(self.scenario.faults.task_fails) {
            self.tally.tasks_failed += 1;
            return failed("bad luck", true);
        }
        if matches!(task, Task::Train(task) if task.checkpoint)
            && self.now_ms < self.disk_full_until_ms
        {
            return TaskOutcome::Failed(TaskFailure::disk_full("no space left on disk"));
        }
        self.do_task(worker, task)
    }

    /// Whether the task can never be done, and whether its worker knows.
    fn poisoned(&self, task: &Task) -> Option<bool> {
        let poison = self.scenario.poison?;
        let prompt = match (task, poison.stage) {
            (Task::Rollout(task), Stage::Rollout) => &task.prompt,
            (Task::Score(task), Stage::Score) => &task.prompt,
            _ => return None,
        };
        let poisoned = *prompt == self.scenario.rows[poison.row as usize].prompt;
        poisoned.then_some(poison.retryable)
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
                    let name = |file: CheckpointFile| file.name(task.iteration);
                    let earlier = task.earlier.iter().map(|policy| {
                        let file = CheckpointFile::Earlier(policy.iteration);
                        (name(file), policy.adapter.hash)
                    });
                    let own = [
                        (name(CheckpointFile::State), result.state.hash),
                        (name(CheckpointFile::Version), result.version.hash),
                    ];
                    self.disk.extend(own.into_iter().chain(earlier));
                }
                TaskOutcome::Train(result)
            }
            Task::Mint(task) => TaskOutcome::Mint(fakes::mint(task)),
        }
    }

    pub(super) fn task_breaks(&mut self, worker: usize, life: u64, lease: LeaseId) {
        if self.lives(worker, life) && self.workers[worker].running.remove(&lease).is_some() {
            let outcome = failed("a peer closed the connection", true);
            self.workers[worker]
                .results
                .push(TaskResult { lease, outcome });
            self.report(worker);
        }
    }

    pub(super) fn kill(&mut self, worker: usize) {
        let fake = &mut self.workers[worker];
        fake.alive = false;
        fake.blobs.clear();
        let life = fake.life;
        // Its connection breaks, and the coordinator may notice.
        let waiting = self
            .seat
            .callers
            .iter()
            .find(|(_, caller)| caller.worker == worker && caller.life == life);
        if let Some((ticket, _)) = waiting
            && self.random.chance(0.5)
        {
            let ticket = *ticket;
            self.after(5, Event::Arrives(Box::new(Message::HungUp(ticket))));
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
}

/// Why tasks of a poisoned row fail.
const POISON: &str = "poison";

fn described(task: &Task) -> String {
    match task {
        Task::Rollout(task) => format!("samples group {}", task.group),
        Task::Score(task) => format!("scores group {}", task.group),
        Task::Train(task) => format!(
            "is rank {} of {} for iteration {} in epoch {:x}",
            task.collective.rank, task.collective.world, task.iteration, task.collective.epoch.0
        ),
        Task::Mint(task) => format!("mints the id of epoch {:x}", task.epoch.0),
    }
}

fn failed(reason: &str, retryable: bool) -> TaskOutcome {
    TaskOutcome::Failed(TaskFailure {
        retryable,
        ..TaskFailure::retryable(reason)
    })
}
