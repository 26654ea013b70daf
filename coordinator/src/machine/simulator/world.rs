//! The virtual world: a clock, a network, processes that come and go, and a disk.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, HashMap};

use retouch_proto::worker::{Registration, Report, ReportReply, Role};
use retouch_proto::{ContentHash, Epoch, Generation, LeaseId, RunConfig};

use super::checks::RecordCheck;
use super::fakes::Fake;
use super::faults::Faults;
use super::memory::Memory;
use super::random::Random;
use crate::machine::Machine;
use crate::machine::io::{Command, Input, Outcome, Ticket};
use crate::machine::prompts::DatasetRow;
use crate::machine::record::Entry;

/// Virtual time after which a run that has not ended never will.
const END_MS: u64 = 4 * 3_600_000;
/// Fakes report this often while they are busy.
pub(super) const HEARTBEAT_MS: u64 = 400;
/// Fakes give up waiting for an answer.
pub(super) const ANSWER_MS_MAX: u64 = 4_000;

/// What happens next, somewhere.
#[derive(Clone, Debug)]
pub(super) enum Event {
    Arrives(Message),
    Answered {
        worker: usize,
        life: u64,
        answer: Answer,
    },
    ReportDue {
        worker: usize,
        life: u64,
        sequence: u64,
    },
    AnswerOverdue {
        worker: usize,
        life: u64,
        sequence: u64,
    },
    TaskEnds {
        worker: usize,
        life: u64,
        lease: LeaseId,
    },
    TaskBreaks {
        worker: usize,
        life: u64,
        lease: LeaseId,
    },
    Starts {
        worker: usize,
    },
    Deadline,
    WorkerCrash,
    BlobLoss,
    CoordinatorCrash,
    CoordinatorStarts,
    Person,
    Resumes,
}

#[derive(Clone, Debug)]
pub(super) enum Message {
    Register {
        worker: usize,
        life: u64,
        registration: Registration,
    },
    Report {
        worker: usize,
        life: u64,
        report: Report,
    },
    HungUp(Ticket),
}

#[derive(Clone, Debug)]
pub(super) enum Answer {
    Registered(Generation),
    Reply { sequence: u64, reply: ReportReply },
}

/// Who waits for an answer of the machine.
pub(super) struct Caller {
    pub(super) worker: usize,
    pub(super) life: u64,
    pub(super) sequence: u64,
    pub(super) asked_ms: u64,
}

/// A simulated run.
pub(super) struct World {
    pub(super) config: RunConfig,
    pub(super) rows: Vec<DatasetRow>,
    pub(super) faults: Faults,
    pub(super) random: Random,
    pub(super) now_ms: u64,
    pub(super) order: u64,
    pub(super) queue: BinaryHeap<Reverse<(u64, u64)>>,
    pub(super) events: HashMap<u64, Event>,
    pub(super) machine: Option<Machine>,
    pub(super) memory: Memory,
    pub(super) check: RecordCheck,
    pub(super) workers: Vec<Fake>,
    pub(super) next_ticket: u64,
    pub(super) callers: BTreeMap<Ticket, Caller>,
    /// Ranks that have begun an epoch's step.
    pub(super) barriers: BTreeMap<Epoch, BTreeSet<(usize, LeaseId)>>,
    pub(super) disk: HashMap<String, ContentHash>,
    pub(super) outcome: Option<Outcome>,
    pub(super) recorded: Vec<Entry>,
    pub(super) keep_entries: bool,
    pub(super) steps: u64,
    pub(super) coordinator_starts: u64,
    pub(super) worker_starts: u64,
}

/// How a simulated run ended.
pub(super) struct Ended {
    pub(super) outcome: Outcome,
    pub(super) steps: u64,
    pub(super) virtual_ms: u64,
    pub(super) rewinds: u64,
    pub(super) coordinator_starts: u64,
    pub(super) worker_starts: u64,
    pub(super) recorded: Vec<Entry>,
    pub(super) memory: Memory,
}

/// How many fakes of each role.
#[derive(Clone, Copy)]
pub(super) struct Cast {
    pub(super) rollout: usize,
    pub(super) reward: usize,
    pub(super) learner: usize,
}

impl World {
    pub(super) fn new(
        config: RunConfig,
        rows: Vec<DatasetRow>,
        cast: Cast,
        faults: Faults,
        seed: u64,
    ) -> Self {
        let slots = |role| if role == Role::Learner { 1 } else { 2 };
        let fakes = [
            (Role::Rollout, cast.rollout),
            (Role::Reward, cast.reward),
            (Role::Learner, cast.learner),
        ];
        let fakes = fakes
            .into_iter()
            .flat_map(|(role, count)| (0..count).map(move |n| (role, n)));
        let mut world = Self {
            config,
            rows,
            faults,
            random: Random::new(seed),
            now_ms: 1_000_000,
            order: 0,
            queue: BinaryHeap::new(),
            events: HashMap::new(),
            machine: None,
            memory: Memory::new(),
            check: RecordCheck::default(),
            workers: fakes
                .map(|(role, n)| Fake::new(role, n, slots(role)))
                .collect(),
            next_ticket: 0,
            callers: BTreeMap::new(),
            barriers: BTreeMap::new(),
            disk: HashMap::new(),
            outcome: None,
            recorded: Vec::new(),
            keep_entries: false,
            steps: 0,
            coordinator_starts: 0,
            worker_starts: 0,
        };
        world.faults.until_ms += world.now_ms;
        world.begin();
        world
    }

    /// Keeps every entry, to write them to a store afterwards.
    pub(super) fn keep_entries(mut self) -> Self {
        self.keep_entries = true;
        self
    }

    pub(super) fn begin(&mut self) {
        if self.faults.other_devices {
            self.workers[0].odd_device = true;
        }
        self.after(0, Event::CoordinatorStarts);
        for worker in 0..self.workers.len() {
            let delay_ms = self.random.within(0..500);
            self.after(delay_ms, Event::Starts { worker });
        }
        self.again(self.faults.worker_crash_ms, Event::WorkerCrash);
        self.again(self.faults.coordinator_crash_ms, Event::CoordinatorCrash);
        self.again(self.faults.blob_loss_ms, Event::BlobLoss);
        self.again(self.faults.command_ms, Event::Person);
    }

    /// Plans a fault around every so often, as long as there are faults.
    pub(super) fn again(&mut self, mean_ms: u64, event: Event) {
        let delay_ms = self.random.within(1..2 * mean_ms.max(1));
        if mean_ms > 0 && self.now_ms + delay_ms < self.faults.until_ms {
            self.after(delay_ms, event);
        }
    }

    pub(super) fn after(&mut self, delay_ms: u64, event: Event) {
        self.order += 1;
        self.queue
            .push(Reverse((self.now_ms + delay_ms, self.order)));
        self.events.insert(self.order, event);
    }

    /// Runs to the end.
    pub(super) fn run(mut self) -> Ended {
        while self.outcome.is_none() {
            let Reverse((at_ms, order)) = self.queue.pop().expect("something always happens");
            let event = self.events.remove(&order).expect("planned");
            self.now_ms = self.now_ms.max(at_ms);
            assert!(
                self.now_ms < END_MS,
                "the run does not end (liveness): {:#?}",
                self.stuck()
            );
            self.happen(event);
            self.steps += 1;
        }
        Ended {
            outcome: self.outcome.expect("looked at above"),
            steps: self.steps,
            virtual_ms: self.now_ms - 1_000_000,
            rewinds: self.check.rewinds,
            coordinator_starts: self.coordinator_starts,
            worker_starts: self.worker_starts,
            recorded: self.recorded,
            memory: self.memory,
        }
    }

    pub(super) fn stuck(&self) -> Option<retouch_proto::status::RunStatus> {
        self.machine
            .as_ref()
            .map(|machine| machine.status(self.now_ms))
    }

    pub(super) fn is_faulty(&self) -> bool {
        self.now_ms < self.faults.until_ms
    }

    pub(super) fn fault(&mut self, probability: f64) -> bool {
        self.is_faulty() && self.random.chance(probability)
    }

    pub(super) fn happen(&mut self, event: Event) {
        match event {
            Event::Arrives(message) => self.arrive(message),
            Event::Answered {
                worker,
                life,
                answer,
            } => self.answered(worker, life, answer),
            Event::ReportDue {
                worker,
                life,
                sequence,
            } => {
                // Only if nothing was reported since.
                if self.lives(worker, life) && self.workers[worker].sequence == sequence {
                    self.report(worker);
                }
            }
            Event::AnswerOverdue {
                worker,
                life,
                sequence,
            } => self.answer_overdue(worker, life, sequence),
            Event::TaskEnds {
                worker,
                life,
                lease,
            } => self.task_ends(worker, life, lease),
            Event::TaskBreaks {
                worker,
                life,
                lease,
            } => self.task_breaks(worker, life, lease),
            Event::Starts { worker } => self.start_worker(worker),
            Event::Deadline => self.deadline(),
            Event::WorkerCrash => self.worker_crash(),
            Event::BlobLoss => self.blob_loss(),
            Event::CoordinatorCrash => self.coordinator_crash(),
            Event::CoordinatorStarts => self.start_coordinator(),
            Event::Person => self.person(),
            Event::Resumes => self.command(Command::Resume),
        }
    }

    /// Late, lost or doubled.
    pub(super) fn send(&mut self, event: impl Fn() -> Event) {
        if self.fault(self.faults.lost) {
            return;
        }
        let copies = if self.fault(self.faults.doubled) {
            2
        } else {
            1
        };
        let latency_ms_max = if self.is_faulty() {
            self.faults.latency_ms_max
        } else {
            5
        };
        for _ in 0..copies {
            let latency_ms = self.random.within(1..latency_ms_max + 1);
            self.after(latency_ms, event());
        }
    }

    pub(super) fn arrive(&mut self, message: Message) {
        if self.machine.is_none() {
            return;
        }
        let ticket = self.ticket();
        let asked_ms = self.now_ms;
        match message {
            Message::Register {
                worker,
                life,
                registration,
            } => {
                self.callers.insert(
                    ticket,
                    Caller {
                        worker,
                        life,
                        sequence: 0,
                        asked_ms,
                    },
                );
                self.handle(Input::Register(ticket, registration));
            }
            Message::Report {
                worker,
                life,
                report,
            } => {
                let sequence = report.sequence;
                self.callers.insert(
                    ticket,
                    Caller {
                        worker,
                        life,
                        sequence,
                        asked_ms,
                    },
                );
                self.handle(Input::Report(ticket, report));
            }
            Message::HungUp(ticket) => {
                if self.callers.remove(&ticket).is_some() {
                    self.handle(Input::HungUp(ticket));
                }
            }
        }
    }
}
