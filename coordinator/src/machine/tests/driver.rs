//! Steps a machine and fake peers by hand, on a clock that only the test moves.

use std::collections::BTreeMap;

use retouch_dataset::Row;
use retouch_proto::RunConfig;
use retouch_proto::config::{FilterRule, Preset, preset};
use retouch_proto::status::{Controlled, Event, EventKind};
use retouch_proto::task::{Task, TaskFailure, TaskOutcome, TaskResult};
use retouch_proto::worker::{Directive, ReportReply, Role};
use retouch_proto::{ContentHash, LeaseId};

use crate::machine::Machine;
use crate::machine::io::{Command, Input, Outcome, Output, Ticket};
use crate::machine::record::{CommittedEntry, Entry, Record};
use crate::machine::simulator::fakes::{self, Fake};

/// Names a peer.
pub(super) type Peer = usize;

/// A machine and its peers.
pub(super) struct Driver {
    pub(super) machine: Machine,
    pub(super) now_ms: u64,
    pub(super) peers: Vec<Fake>,
    pub(super) entries: Vec<Entry>,
    pub(super) exit: Option<Outcome>,
    /// What commands were answered.
    pub(super) answers: Vec<Result<Controlled, String>>,
    /// The answer to each peer's last report, once there is one.
    pub(super) replies: BTreeMap<Peer, ReportReply>,
    waiting: BTreeMap<Ticket, Peer>,
    tickets: u64,
}

/// Two groups of two per iteration, three iterations, a checkpoint at the end only.
pub(super) fn config() -> RunConfig {
    let mut config = preset(Preset::Tiny);
    config.iterations = 3;
    config.rollout.groups_per_iteration = 2;
    config.rollout.group_size = 2;
    config.filter.rule = FilterRule::None;
    config.filter.ban = false;
    config.learner.ranks = 1;
    config.learner.checkpoint_every = 100;
    config.cluster.heartbeat_ms = 1_000;
    config.cluster.lease_s = 60;
    config.cluster.attempts_max = 3;
    config.cluster.rank_grace_s = 10;
    config.cluster.report_wait_ms_max = 2_000;
    config
}

pub(super) fn rows(count: usize) -> Vec<Row> {
    let row = |index| Row {
        prompt: format!("prompt {index}"),
        images: vec!["images/a.png".into()],
        requirement: String::new(),
        target: None,
    };
    (0..count).map(row).collect()
}

impl Driver {
    pub(super) fn new(config: RunConfig) -> Self {
        Self::restored(config, Record::empty(1))
    }

    pub(super) fn restored(config: RunConfig, record: Record) -> Self {
        config.validate().expect("a valid configuration");
        let mut driver = Self {
            machine: Machine::new(config, rows(20), record, 0),
            now_ms: 0,
            peers: Vec::new(),
            entries: Vec::new(),
            exit: None,
            answers: Vec::new(),
            replies: BTreeMap::new(),
            waiting: BTreeMap::new(),
            tickets: 0,
        };
        driver.collect();
        driver
    }

    /// One worker of each role, ready for work: rollout 0, reward 1, learner 2.
    pub(super) fn with_all_roles(config: RunConfig) -> Self {
        let mut driver = Self::new(config);
        for role in Role::ALL {
            driver.join(role, 2);
        }
        driver
    }

    fn ticket(&mut self) -> Ticket {
        self.tickets += 1;
        Ticket(self.tickets)
    }

    pub(super) fn handle(&mut self, input: Input) {
        self.machine.handle(self.now_ms, input);
        self.collect();
    }

    fn collect(&mut self) {
        while let Some(output) = self.machine.poll() {
            match output {
                Output::Record(entry) => self.entries.push(entry),
                Output::Registered(ticket, generation) => {
                    let peer = self.waiting.remove(&ticket).expect("asked");
                    self.peers[peer].generation = Some(generation);
                }
                Output::Reply(ticket, reply) => self.replied(ticket, reply),
                Output::Exit(outcome) => self.exit = Some(outcome),
                Output::Controlled(_, answer) => self.answers.push(answer),
                Output::Event(_) => {}
            }
        }
    }

    fn replied(&mut self, ticket: Ticket, reply: ReportReply) {
        let peer = self
            .waiting
            .remove(&ticket)
            .expect("asked, and not answered yet");
        let fake = &mut self.peers[peer];
        let sequence = fake.sequence;
        fake.acknowledge(sequence);
        for assignment in &reply.assignments {
            fake.running
                .insert(assignment.lease, assignment.task.clone());
        }
        for lease in &reply.cancel {
            fake.running.remove(lease);
        }
        self.replies.insert(peer, reply);
    }

    /// A new worker that has registered and reported once.
    pub(super) fn join(&mut self, role: Role, slots: u32) -> Peer {
        let number = self.peers.iter().filter(|fake| fake.role == role).count();
        let slots = if role == Role::Learner { 1 } else { slots };
        self.peers.push(Fake::new(role, number, slots));
        let peer = self.peers.len() - 1;
        self.restart(peer);
        peer
    }

    /// A peer's new process registers and reports.
    pub(super) fn restart(&mut self, peer: Peer) {
        self.peers[peer].restart();
        self.register(peer);
        self.report(peer);
    }

    pub(super) fn register(&mut self, peer: Peer) {
        let ticket = self.ticket();
        self.peers[peer].sequence = 0;
        self.waiting.insert(ticket, peer);
        let registration = self.peers[peer].registration();
        self.handle(Input::Register(ticket, registration));
    }

    /// Reports; the answer may come later.
    pub(super) fn report(&mut self, peer: Peer) -> Ticket {
        let ticket = self.ticket();
        self.replies.remove(&peer);
        let report = self.peers[peer].report().expect("registered");
        self.waiting.insert(ticket, peer);
        self.handle(Input::Report(ticket, report));
        ticket
    }

    /// Lets time pass, with every alarm at its time; peers stay silent.
    pub(super) fn pass(&mut self, ms: u64) {
        let until_ms = self.now_ms + ms;
        while let Some(at_ms) = self
            .machine
            .next_deadline()
            .filter(|at_ms| *at_ms <= until_ms)
        {
            self.now_ms = self.now_ms.max(at_ms);
            self.handle(Input::Tick);
        }
        self.now_ms = until_ms;
    }

    /// Lets time pass while these peers keep reporting.
    pub(super) fn pass_reporting(&mut self, ms: u64, peers: &[Peer]) {
        for _ in 0..ms / 500 {
            self.pass(500);
            for peer in peers {
                self.report(*peer);
            }
        }
    }

    /// The peer's tasks, oldest first.
    pub(super) fn tasks(&self, peer: Peer) -> Vec<(LeaseId, Task)> {
        self.peers[peer]
            .running
            .iter()
            .map(|(lease, task)| (*lease, task.clone()))
            .collect()
    }

    /// Ends a task with this outcome and reports.
    pub(super) fn end(&mut self, peer: Peer, lease: LeaseId, outcome: TaskOutcome) {
        self.peers[peer].running.remove(&lease);
        self.peers[peer].results.push(TaskResult { lease, outcome });
        self.report(peer);
    }

    /// Fails the peer's oldest task.
    pub(super) fn fail(
        &mut self,
        peer: Peer,
        reason: &str,
        retryable: bool,
        lost_blobs: Vec<ContentHash>,
    ) {
        let (lease, _) = self.tasks(peer).remove(0);
        let failure = TaskFailure {
            lost_blobs,
            retryable,
            ..TaskFailure::retryable(reason)
        };
        self.end(peer, lease, TaskOutcome::Failed(failure));
    }

    /// Does all of the peer's tasks, and those that come in return, until it waits for work.
    pub(super) fn work(&mut self, peer: Peer) {
        for _ in 0..100 {
            for (lease, task) in self.tasks(peer) {
                let outcome = self.outcome(peer, &task);
                self.end(peer, lease, outcome);
            }
            if !self.waiting.values().any(|waiting| *waiting == peer) {
                self.report(peer);
            }
            if self.tasks(peer).is_empty() {
                return;
            }
        }
        panic!("there is no end to the work of {}", self.peers[peer].id);
    }

    pub(super) fn outcome(&mut self, peer: Peer, task: &Task) -> TaskOutcome {
        let fake = &mut self.peers[peer];
        match task {
            Task::Rollout(task) => TaskOutcome::Rollout(fake.sample(task)),
            Task::Score(task) => TaskOutcome::Score(fakes::score(task)),
            Task::Train(task) => {
                let result = fakes::train(task);
                fake.blobs.extend([result.state.hash, result.version.hash]);
                TaskOutcome::Train(result)
            }
            Task::Mint(task) => TaskOutcome::Mint(fakes::mint(task)),
        }
    }

    /// Everybody works until so many iterations are committed.
    pub(super) fn work_until_committed(&mut self, iteration: u32) {
        self.work_until(|driver| driver.machine.progress.committed().iteration.0 >= iteration);
    }

    /// Everybody but learners works until all of these have been given a training step.
    pub(super) fn work_until_training(&mut self, learners: &[Peer]) {
        for _ in 0..200 {
            for peer in 0..self.peers.len() {
                if self.peers[peer].role != Role::Learner {
                    self.work(peer);
                }
            }
            for learner in learners {
                if self.tasks(*learner).is_empty() {
                    self.report(*learner);
                }
            }
            if learners
                .iter()
                .all(|learner| !self.tasks(*learner).is_empty())
            {
                return;
            }
            self.pass(10);
        }
        panic!(
            "training does not begin: {:#?}",
            self.machine.status(self.now_ms)
        );
    }

    pub(super) fn work_until(&mut self, done: impl Fn(&Self) -> bool) {
        for _ in 0..200 {
            for peer in 0..self.peers.len() {
                if done(self) {
                    return;
                }
                self.work(peer);
            }
            self.pass(10);
        }
        panic!(
            "it does not come to that: {:#?}",
            self.machine.status(self.now_ms)
        );
    }

    pub(super) fn command(&mut self, command: Command) {
        let ticket = self.ticket();
        self.handle(Input::Control(ticket, command));
    }

    /// What the command was answered, in words.
    pub(super) fn told(&mut self, command: Command) -> Result<String, String> {
        self.command(command);
        let answer = self
            .answers
            .pop()
            .expect("every command is answered at once");
        answer.map(|controlled| controlled.message)
    }

    /// Events of a kind, in words.
    pub(super) fn events(&self, kind: EventKind) -> Vec<String> {
        let events = self.entries.iter().filter_map(|entry| match entry {
            Entry::Event(Event {
                kind: of, message, ..
            }) if *of == kind => Some(message.clone()),
            _ => None,
        });
        events.collect()
    }

    pub(super) fn commits(&self) -> Vec<&CommittedEntry> {
        let commits = self.entries.iter().filter_map(|entry| match entry {
            Entry::Committed(entry) => Some(&**entry),
            _ => None,
        });
        commits.collect()
    }

    pub(super) fn directive(&self, peer: Peer) -> Option<Directive> {
        self.replies.get(&peer).map(|reply| reply.directive)
    }

    /// Whether the peer's last report was not answered yet.
    pub(super) fn is_held(&self, peer: Peer) -> bool {
        !self.replies.contains_key(&peer)
    }
}

impl Driver {
    /// Some task for the peer, of no group that is open.
    pub(super) fn stray_task(&self) -> Task {
        Task::Rollout(retouch_proto::task::RolloutTask {
            group: retouch_proto::GroupId {
                iteration: retouch_proto::Iteration(9),
                index: 9,
            },
            prompt: String::new(),
            requirement: String::new(),
            images: Vec::new(),
            version: None,
            group_size: 2,
        })
    }

    /// The groups of the record, as drawn.
    pub(super) fn drawn(&self) -> Vec<crate::machine::record::GroupRecord> {
        let drawn = self.entries.iter().filter_map(|entry| match entry {
            Entry::Drawn(drawn) => Some(crate::machine::record::GroupRecord {
                drawn: *drawn,
                sampled: None,
                scored: None,
                dropped: None,
            }),
            _ => None,
        });
        drawn.collect()
    }
}
