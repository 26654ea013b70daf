//! The virtual world: a clock, a network, processes that come and go, and a disk.

mod workers;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, HashMap};

use retouch_proto::task::{Task, TaskFailure, TaskOutcome, TaskResult};
use retouch_proto::worker::{Directive, Registration, Report, ReportReply, Role};
use retouch_proto::{BlobAddress, BlobRef, ContentHash, Epoch, Generation, LeaseId, RunConfig};

use super::checks::{self, RecordCheck};
use super::fakes::{self, Fake};
use super::faults::Faults;
use super::memory::Memory;
use super::random::Random;
use crate::machine::Machine;
use crate::machine::io::{Command, Input, Outcome, Output, Ticket};
use crate::machine::prompts::DatasetRow;
use crate::machine::record::Entry;

/// Virtual time after which a run that has not ended never will.
const END_MS: u64 = 4 * 3_600_000;
/// Fakes report this often while they are busy.
const HEARTBEAT_MS: u64 = 400;
/// Fakes give up waiting for an answer.
const ANSWER_MS_MAX: u64 = 4_000;

/// What happens next, somewhere.
#[derive(Clone, Debug)]
enum Event {
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
enum Message {
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
enum Answer {
    Registered(Generation),
    Reply { sequence: u64, reply: ReportReply },
}

/// Who waits for an answer of the machine.
struct Caller {
    worker: usize,
    life: u64,
    sequence: u64,
    asked_ms: u64,
}

/// A simulated run.
pub(super) struct World {
    config: RunConfig,
    rows: Vec<DatasetRow>,
    faults: Faults,
    random: Random,
    now_ms: u64,
    order: u64,
    queue: BinaryHeap<Reverse<(u64, u64)>>,
    events: HashMap<u64, Event>,
    machine: Option<Machine>,
    memory: Memory,
    check: RecordCheck,
    workers: Vec<Fake>,
    next_ticket: u64,
    callers: BTreeMap<Ticket, Caller>,
    /// Ranks that have begun an epoch's step.
    barriers: BTreeMap<Epoch, BTreeSet<(usize, LeaseId)>>,
    disk: HashMap<String, ContentHash>,
    outcome: Option<Outcome>,
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
            steps: 0,
            coordinator_starts: 0,
            worker_starts: 0,
        };
        world.faults.until_ms += world.now_ms;
        world.begin();
        world
    }

    fn begin(&mut self) {
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
    fn again(&mut self, mean_ms: u64, event: Event) {
        let delay_ms = self.random.within(1..2 * mean_ms.max(1));
        if mean_ms > 0 && self.now_ms + delay_ms < self.faults.until_ms {
            self.after(delay_ms, event);
        }
    }

    fn after(&mut self, delay_ms: u64, event: Event) {
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
        }
    }

    fn stuck(&self) -> Option<retouch_proto::status::RunStatus> {
        self.machine
            .as_ref()
            .map(|machine| machine.status(self.now_ms))
    }

    fn is_faulty(&self) -> bool {
        self.now_ms < self.faults.until_ms
    }

    fn fault(&mut self, probability: f64) -> bool {
        self.is_faulty() && self.random.chance(probability)
    }

    fn happen(&mut self, event: Event) {
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

    // The coordinator.

    fn start_coordinator(&mut self) {
        if self.machine.is_some() {
            return;
        }
        self.coordinator_starts += 1;
        let record = self.memory.load();
        let machine = Machine::new(self.config.clone(), self.rows.clone(), record, self.now_ms);
        self.machine = Some(machine);
        self.let_out();
    }

    fn handle(&mut self, input: Input) {
        let Some(machine) = &mut self.machine else {
            return;
        };
        machine.handle(self.now_ms, input);
        self.let_out();
    }

    /// What the shell does: first the record, then everything else. It may die in between.
    fn let_out(&mut self) {
        let Some(machine) = &mut self.machine else {
            return;
        };
        let outputs: Vec<Output> = std::iter::from_fn(|| machine.poll()).collect();
        checks::machine(machine);
        let deadline_ms = machine.next_deadline().expect("checked above");
        if self.faults.coordinator_crash_ms > 0 && self.fault(0.002) {
            return self.coordinator_dies();
        }
        for output in &outputs {
            if let Output::Record(entry) = output {
                self.write(entry);
            }
        }
        if self.faults.coordinator_crash_ms > 0 && self.fault(0.002) {
            return self.coordinator_dies();
        }
        self.after(deadline_ms - self.now_ms, Event::Deadline);
        outputs.into_iter().for_each(|output| self.output(output));
        let now_ms = self.now_ms;
        let patience_ms = self.config.cluster.report_wait_ms_max;
        let waits = |caller: &Caller| now_ms - caller.asked_ms > patience_ms;
        assert!(
            !self.callers.values().any(waits),
            "a report was held for too long (A7)"
        );
    }

    fn write(&mut self, entry: &Entry) {
        let faults = &self.faults;
        let repeatable =
            !faults.other_devices && faults.task_fails == 0.0 && faults.task_hangs == 0.0;
        let staleness_max = self.config.rollout.staleness_max;
        self.check
            .entry(entry, staleness_max, repeatable && staleness_max == 0);
        self.memory.write(entry);
    }

    fn output(&mut self, output: Output) {
        match output {
            Output::Record(_) | Output::Event(_) | Output::Controlled(..) => {}
            Output::Registered(ticket, generation) => {
                self.deliver(ticket, |_| Answer::Registered(generation));
            }
            Output::Reply(ticket, reply) => {
                self.deliver(ticket, |sequence| Answer::Reply {
                    sequence,
                    reply: reply.clone(),
                });
            }
            Output::Exit(outcome) => self.exit(outcome),
        }
    }

    fn deliver(&mut self, ticket: Ticket, answer: impl Fn(u64) -> Answer) {
        let caller = self
            .callers
            .remove(&ticket)
            .expect("every ticket is answered once");
        let Caller {
            worker,
            life,
            sequence,
            ..
        } = caller;
        self.send(|| Event::Answered {
            worker,
            life,
            answer: answer(sequence),
        });
    }

    fn exit(&mut self, outcome: Outcome) {
        if outcome.failure.is_some() || outcome.iteration.0 == self.config.iterations {
            self.outcome = Some(outcome);
            return;
        }
        // Drained or stopped: everything is started again with the same run folder.
        self.machine = None;
        self.callers.clear();
        for worker in 0..self.workers.len() {
            self.kill(worker);
            self.after(100, Event::Starts { worker });
        }
        self.after(50, Event::CoordinatorStarts);
    }

    fn deadline(&mut self) {
        let due = self
            .machine
            .as_ref()
            .and_then(|machine| machine.next_deadline());
        if due.is_some_and(|due_ms| due_ms <= self.now_ms) {
            self.handle(Input::Tick);
        }
    }

    fn coordinator_crash(&mut self) {
        self.coordinator_dies();
        self.again(self.faults.coordinator_crash_ms, Event::CoordinatorCrash);
    }

    fn coordinator_dies(&mut self) {
        if self.machine.take().is_some() {
            self.callers.clear();
            let delay_ms = self.random.within(10..3_000);
            self.after(delay_ms, Event::CoordinatorStarts);
        }
    }

    fn person(&mut self) {
        match self.random.within(0..10) {
            0 => self.command(Command::Drain),
            1 => self.command(Command::Stop),
            _ => {
                self.command(Command::Pause);
                self.after(700, Event::Resumes);
            }
        }
        self.again(self.faults.command_ms, Event::Person);
    }

    fn command(&mut self, command: Command) {
        let ticket = self.ticket();
        self.handle(Input::Control(ticket, command));
    }

    fn ticket(&mut self) -> Ticket {
        self.next_ticket += 1;
        Ticket(self.next_ticket)
    }

    // The network.

    /// Late, lost or doubled.
    fn send(&mut self, event: impl Fn() -> Event) {
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

    fn arrive(&mut self, message: Message) {
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

    // Workers.
}

fn failed(reason: &str) -> TaskOutcome {
    let reason = reason.to_owned();
    TaskOutcome::Failed(TaskFailure {
        reason,
        lost_blobs: Vec::new(),
        retryable: true,
    })
}
