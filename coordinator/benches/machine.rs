//! Events per second of the machine alone, for clusters of different sizes.

#[path = "common/mod.rs"]
mod common;

use std::collections::{HashMap, VecDeque};
use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use retouch_coordinator::machine::Machine;
use retouch_coordinator::machine::io::{Input, Output, Ticket};
use retouch_coordinator::machine::record::Record;
use retouch_dataset::Row;
use retouch_proto::task::{Assignment, TaskResult};
use retouch_proto::worker::{Report, ReportReply, Role, WorkerState};
use retouch_proto::{Generation, LeaseId, WorkerId};

/// A worker of the benchmark.
struct Peer {
    id: WorkerId,
    generation: Generation,
    sequence: u64,
    assignments: Vec<Assignment>,
}

/// A machine whose workers answer at once.
struct Cluster {
    machine: Machine,
    now_ms: u64,
    peers: Vec<Peer>,
    waiting: HashMap<Ticket, usize>,
    /// Peers that have something to report.
    ready: VecDeque<usize>,
    tickets: u64,
    events: u64,
}

impl Cluster {
    /// Half of the workers sample, the others score, one trains.
    fn new(workers: usize) -> Self {
        let row = |index| Row {
            prompt: format!("make object {index} blue"),
            images: vec![format!("images/{index}.png")],
            requirement: "object is blue".into(),
            target: None,
        };
        let rows = (0..10_000).map(row).collect();
        let config = common::config((workers as u32).clamp(8, 8_192));
        let mut cluster = Self {
            machine: Machine::new(config, rows, Record::empty(1), 0),
            now_ms: 0,
            peers: Vec::new(),
            waiting: HashMap::new(),
            ready: VecDeque::new(),
            tickets: 0,
            events: 0,
        };
        for number in 0..workers / 2 {
            cluster.join(Role::Rollout, number);
            cluster.join(Role::Reward, number);
        }
        cluster.join(Role::Learner, 0);
        cluster
    }

    fn join(&mut self, role: Role, number: usize) {
        let registration = common::registration(role, number);
        let id = registration.worker.clone();
        self.peers.push(Peer {
            id,
            generation: Generation(0),
            sequence: 0,
            assignments: Vec::new(),
        });
        let peer = self.peers.len() - 1;
        let ticket = self.ticket(peer);
        self.handle(Input::Register(ticket, registration));
        self.ready.push_back(peer);
    }

    fn ticket(&mut self, peer: usize) -> Ticket {
        self.tickets += 1;
        self.waiting.insert(Ticket(self.tickets), peer);
        Ticket(self.tickets)
    }

    fn handle(&mut self, input: Input) {
        self.events += 1;
        self.machine.handle(self.now_ms, input);
        while let Some(output) = self.machine.poll() {
            match output {
                Output::Registered(ticket, generation) => {
                    let peer = self.waiting.remove(&ticket).expect("asked");
                    self.peers[peer].generation = generation;
                }
                Output::Reply(ticket, reply) => self.replied(ticket, reply),
                Output::Record(entry) => drop(black_box(entry)),
                Output::Exit(outcome) => panic!("the run ended: {outcome:?}"),
                Output::Controlled(..) | Output::Event(_) => {}
            }
        }
    }

    fn replied(&mut self, ticket: Ticket, reply: ReportReply) {
        let peer = self.waiting.remove(&ticket).expect("asked");
        self.peers[peer].assignments.extend(reply.assignments);
        self.ready.push_back(peer);
    }

    /// The next peer reports what it has done, or that it is free.
    fn step(&mut self) {
        let Some(peer) = self.ready.pop_front() else {
            self.now_ms = self.machine.next_deadline().expect("a deadline");
            return self.handle(Input::Tick);
        };
        let state = &mut self.peers[peer];
        state.sequence += 1;
        let done = state.assignments.drain(..).map(|assignment| TaskResult {
            lease: assignment.lease,
            outcome: common::outcome(&assignment.task),
        });
        let report = Report {
            worker: state.id.clone(),
            generation: state.generation,
            sequence: state.sequence,
            state: WorkerState::Ready,
            slots_free: 1,
            running: Vec::<LeaseId>::new(),
            results: done.collect(),
            blobs_added: Vec::new(),
            blobs_dropped: Vec::new(),
        };
        let ticket = self.ticket(peer);
        self.handle(Input::Report(ticket, report));
    }
}

fn events(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("machine/events");
    for workers in [10, 100, 1_000, 10_000] {
        let mut cluster = Cluster::new(workers);
        for _ in 0..4 * workers {
            cluster.step();
        }
        group.throughput(Throughput::Elements(1));
        group.bench_function(
            BenchmarkId::from_parameter(format!("{workers} workers")),
            |bencher| {
                bencher.iter(|| cluster.step());
            },
        );
    }
    group.finish();
}

fn status(criterion: &mut Criterion) {
    let cluster = Cluster::new(10_000);
    criterion.bench_function("machine/status of 10000 workers", |bencher| {
        bencher.iter(|| black_box(cluster.machine.status(cluster.now_ms)));
    });
}

criterion_group!(benches, events, status);
criterion_main!(benches);
