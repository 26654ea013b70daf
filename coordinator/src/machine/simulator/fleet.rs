//! A cluster on which nothing goes wrong and every task takes its time: for schedules and for scale.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};

use retouch_dataset::Row;
use retouch_proto::task::{Assignment, Task, TaskOutcome, TaskResult};
use retouch_proto::worker::{Directive, Report, ReportReply, Role, WorkerState};
use retouch_proto::{LeaseId, RunConfig};

use super::fakes::{self, Fake};
use super::random::Random;
use crate::machine::Machine;
use crate::machine::io::{Input, Output, Ticket};
use crate::machine::record::{CommittedEntry, Entry, Record};

/// How long each task takes.
#[derive(Clone, Copy, Debug)]
pub struct Durations {
    /// To sample a group.
    pub rollout_ms: u64,
    /// To score a group.
    pub score_ms: u64,
    /// To train on an iteration.
    pub train_ms: u64,
    /// A task takes up to this share longer or shorter.
    pub jitter: f64,
}

/// How many workers of each role.
#[derive(Clone, Copy, Debug)]
pub struct Crew {
    /// Rollout workers.
    pub rollout: usize,
    /// Reward workers.
    pub reward: usize,
    /// Learner ranks.
    pub learner: usize,
}

/// What a worker does next by itself.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Due {
    /// It ends a task.
    Ends(LeaseId),
    /// It reports, unless it has reported since that number.
    Beats(u64),
}

struct Member {
    fake: Fake,
    tasks: HashMap<LeaseId, Assignment>,
    done: Vec<TaskResult>,
}

/// What happened in a fleet.
#[derive(Clone, Debug, Default)]
pub struct Totals {
    /// Inputs that the machine handled.
    pub events: u64,
    /// Tasks given out.
    pub dispatches: u64,
    /// Time in the machine, by the clock that the fleet was given.
    pub machine_ns: u64,
    /// Iterations that happened.
    pub iterations: u32,
    /// Virtual time.
    pub virtual_ms: u64,
    /// Virtual time that workers of each role were at work, in the order of the roles.
    pub busy_ms: [u64; 3],
    /// Groups that were trained on.
    pub trained: u64,
    /// Sum over them of the iterations between the policy that sampled and the one that learned.
    pub staleness: u64,
}

/// A machine and its workers.
pub struct Fleet<'a> {
    machine: Machine,
    clock_ns: &'a dyn Fn() -> u64,
    durations: Durations,
    random: Random,
    now_ms: u64,
    members: Vec<Member>,
    waiting: HashMap<Ticket, usize>,
    queue: BinaryHeap<Reverse<(u64, usize, Due)>>,
    /// Members that have something to report now.
    ready: VecDeque<usize>,
    heartbeat_ms: u64,
    tickets: u64,
    is_over: bool,
    /// The policy's iteration of each group that was sampled.
    sampled_by: HashMap<retouch_proto::GroupId, u32>,
    totals: Totals,
}

impl<'a> Fleet<'a> {
    /// A machine without workers. `clock_ns` measures what the machine costs.
    pub fn new(
        config: RunConfig,
        rows: usize,
        durations: Durations,
        clock_ns: &'a dyn Fn() -> u64,
    ) -> Self {
        let row = |index| Row {
            prompt: format!("make object {index} blue"),
            images: vec![format!("images/{index}.png")],
            requirement: "object is blue".into(),
            target: None,
        };
        let rows = (0..rows).map(row).collect();
        let heartbeat_ms = config.cluster.heartbeat_ms;
        let mut fleet = Self {
            machine: Machine::new(config, rows, Record::empty(1), 0),
            clock_ns,
            durations,
            random: Random::new(1),
            now_ms: 0,
            members: Vec::new(),
            waiting: HashMap::new(),
            queue: BinaryHeap::new(),
            ready: VecDeque::new(),
            heartbeat_ms,
            tickets: 0,
            is_over: false,
            sampled_by: HashMap::new(),
            totals: Totals::default(),
        };
        fleet.let_out();
        fleet
    }

    /// All of a crew join.
    pub fn join(&mut self, crew: Crew) {
        let roles = [
            (Role::Learner, crew.learner),
            (Role::Rollout, crew.rollout),
            (Role::Reward, crew.reward),
        ];
        for (role, count) in roles {
            (0..count).for_each(|number| self.join_one(role, number));
        }
    }

    fn join_one(&mut self, role: Role, number: usize) {
        let mut fake = Fake::new(role, number, 1);
        fake.restart();
        let registration = fake.registration();
        self.members.push(Member {
            fake,
            tasks: HashMap::new(),
            done: Vec::new(),
        });
        let member = self.members.len() - 1;
        let ticket = self.ticket(member);
        self.handle(Input::Register(ticket, registration));
        self.ready.push_back(member);
    }

    /// Runs until so many iterations have happened, or the run is over.
    pub fn run(&mut self, iterations: u32) -> &Totals {
        while !self.is_over && self.totals.iterations < iterations {
            if let Some(member) = self.ready.pop_front() {
                self.report(member);
                continue;
            }
            let due_ms = self.machine.next_deadline().unwrap_or(u64::MAX);
            match self.queue.peek() {
                Some(Reverse((at_ms, ..))) if *at_ms <= due_ms => self.next_due(),
                _ => {
                    self.now_ms = due_ms;
                    self.handle(Input::Tick);
                }
            }
        }
        self.totals.virtual_ms = self.now_ms;
        &self.totals
    }

    fn next_due(&mut self) {
        let Some(Reverse((at_ms, member, due))) = self.queue.pop() else {
            return;
        };
        self.now_ms = at_ms;
        match due {
            Due::Ends(lease) => self.end_task(member, lease),
            Due::Beats(sequence) if self.members[member].fake.sequence == sequence => {
                self.report(member);
            }
            Due::Beats(_) => {}
        }
    }

    fn end_task(&mut self, member: usize, lease: LeaseId) {
        let Member { fake, tasks, done } = &mut self.members[member];
        let Some(assignment) = tasks.remove(&lease) else {
            return;
        };
        let outcome = match &assignment.task {
            Task::Rollout(task) => TaskOutcome::Rollout(fake.sample(task)),
            Task::Score(task) => TaskOutcome::Score(fakes::score(task)),
            Task::Train(task) => TaskOutcome::Train(fakes::train(task)),
            Task::Mint(task) => TaskOutcome::Mint(fakes::mint(task)),
        };
        fake.blobs.clear();
        done.push(TaskResult { lease, outcome });
        self.report(member);
    }

    fn report(&mut self, member: usize) {
        let Member { fake, tasks, done } = &mut self.members[member];
        fake.sequence += 1;
        let report = Report {
            worker: fake.id.clone(),
            generation: fake.generation.expect("registered"),
            sequence: fake.sequence,
            state: WorkerState::Ready,
            slots_free: u32::from(tasks.is_empty()),
            running: tasks.keys().copied().collect(),
            results: std::mem::take(done),
            blobs_added: Vec::new(),
            blobs_dropped: Vec::new(),
        };
        let ticket = self.ticket(member);
        self.handle(Input::Report(ticket, report));
    }

    fn ticket(&mut self, member: usize) -> Ticket {
        self.tickets += 1;
        self.waiting.insert(Ticket(self.tickets), member);
        Ticket(self.tickets)
    }

    fn handle(&mut self, input: Input) {
        let begun_ns = (self.clock_ns)();
        self.machine.handle(self.now_ms, input);
        self.totals.machine_ns += (self.clock_ns)() - begun_ns;
        self.totals.events += 1;
        self.let_out();
    }

    fn let_out(&mut self) {
        while let Some(output) = self.machine.poll() {
            match output {
                Output::Registered(ticket, generation) => {
                    let member = self.waiting.remove(&ticket).expect("asked");
                    self.members[member].fake.generation = Some(generation);
                }
                Output::Reply(ticket, reply) => self.replied(ticket, reply),
                Output::Record(Entry::Committed(entry)) => self.committed(&entry),
                Output::Record(Entry::Sampled(entry)) => {
                    let made_by = entry.policy.iteration.0;
                    self.sampled_by.insert(entry.result.group, made_by);
                }
                Output::Exit(_) => self.is_over = true,
                Output::Record(_) | Output::Controlled(..) | Output::Event(_) => {}
            }
        }
    }

    fn committed(&mut self, entry: &CommittedEntry) {
        let iteration = entry.committed.iteration;
        self.totals.iterations = iteration.0;
        for kept in &entry.kept {
            let made_by = self.sampled_by.get(&kept.group).copied().unwrap_or(0);
            self.totals.trained += 1;
            self.totals.staleness += u64::from(iteration.0 - 1 - made_by);
        }
        self.sampled_by
            .retain(|group, _| group.iteration > iteration);
    }

    /// Who has room waits for work again at once; who is at work says so now and then.
    fn replied(&mut self, ticket: Ticket, reply: ReportReply) {
        let member = self.waiting.remove(&ticket).expect("asked");
        for assignment in reply.assignments {
            self.begin(member, assignment);
        }
        if reply.directive == Directive::Shutdown {
            return;
        }
        let Member { fake, tasks, .. } = &self.members[member];
        if tasks.is_empty() {
            return self.ready.push_back(member);
        }
        let beats = Due::Beats(fake.sequence);
        let at_ms = self.now_ms + self.heartbeat_ms;
        self.queue.push(Reverse((at_ms, member, beats)));
    }

    fn begin(&mut self, member: usize, assignment: Assignment) {
        let (ms, role) = match &assignment.task {
            Task::Rollout(_) => (self.durations.rollout_ms, 0),
            Task::Score(_) => (self.durations.score_ms, 1),
            Task::Train(_) => (self.durations.train_ms, 2),
            Task::Mint(_) => (0, 2),
        };
        let share = 2.0 * (self.random.within(0..1_000_000) as f64 / 1e6) - 1.0;
        let ms = (ms as f64 * (1.0 + self.durations.jitter * share)).round() as u64;
        let lease = assignment.lease;
        self.totals.dispatches += 1;
        self.totals.busy_ms[role] += ms;
        self.queue
            .push(Reverse((self.now_ms + ms, member, Due::Ends(lease))));
        self.members[member].tasks.insert(lease, assignment);
    }
}
