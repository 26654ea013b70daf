//! The network of the virtual world: messages are late, lost, doubled, overtaken and cut off.

use retouch_proto::worker::{Registration, Report, ReportReply};
use retouch_proto::{BlobAddress, BlobRef, Generation};

use super::coordinator_side::Caller;
use super::world::{Event, World};
use crate::machine::io::{Input, Ticket};

/// A message that takes longer is counted as late.
const LATE_MS: u64 = 250;

/// From a worker to the coordinator.
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

/// From the coordinator to a worker.
#[derive(Clone, Debug)]
pub(super) enum Answer {
    Registered(Generation),
    Reply { sequence: u64, reply: ReportReply },
}

/// Which way a message goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    Up,
    Down,
}

/// Which ways are cut.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Cut {
    pub(super) up_until_ms: u64,
    pub(super) down_until_ms: u64,
    /// Cut off from workers that are not cut off.
    pub(super) peers_until_ms: u64,
}

/// The cuts of every worker.
pub(super) struct Network {
    pub(super) cuts: Vec<Cut>,
}

impl Network {
    pub(super) fn new(workers: usize) -> Self {
        Self {
            cuts: vec![Cut::default(); workers],
        }
    }

    fn is_cut(&self, worker: usize, way: Way, now_ms: u64) -> bool {
        let cut = self.cuts[worker];
        now_ms
            < match way {
                Way::Up => cut.up_until_ms,
                Way::Down => cut.down_until_ms,
            }
    }

    /// Whether one can't fetch from the other.
    fn are_apart(&self, a: usize, b: usize, now_ms: u64) -> bool {
        let cut = |worker: usize| now_ms < self.cuts[worker].peers_until_ms;
        a != b && cut(a) != cut(b)
    }
}

impl World {
    /// Sends something between a worker and the coordinator.
    pub(super) fn send(&mut self, worker: usize, way: Way, event: Event) {
        let lost = self.fault(self.scenario.faults.lost);
        if lost || self.network.is_cut(worker, way, self.now_ms) {
            self.tally.lost += 1;
            return self.tell(self.workers[worker].id.as_str(), || match way {
                Way::Up => "what it says is lost on the way".to_owned(),
                Way::Down => "what it is told is lost on the way".to_owned(),
            });
        }
        if self.fault(self.scenario.faults.doubled) {
            self.tally.doubled += 1;
            let latency_ms = self.latency_ms();
            self.after(latency_ms, event.clone());
        }
        let latency_ms = self.latency_ms();
        self.after(latency_ms, event);
    }

    fn latency_ms(&mut self) -> u64 {
        let latency_ms_max = match self.is_faulty() {
            true => self.scenario.faults.latency_ms_max,
            false => 5,
        };
        let latency_ms = self.random.within(1..latency_ms_max + 1);
        self.tally.late += u64::from(latency_ms > LATE_MS);
        latency_ms
    }

    /// A message reaches the coordinator's queue, if there is a coordinator.
    pub(super) fn arrive(&mut self, message: Message) {
        if self.seat.machine.is_none() {
            return;
        }
        let input = match message {
            Message::Register {
                worker,
                life,
                registration,
            } => Input::Register(self.calls(worker, life, 0), registration),
            Message::Report {
                worker,
                life,
                report,
            } => Input::Report(self.calls(worker, life, report.sequence), report),
            Message::HungUp(ticket) => Input::HungUp(ticket),
        };
        self.ask(input);
    }

    fn calls(&mut self, worker: usize, life: u64, sequence: u64) -> Ticket {
        let ticket = self.seat.ticket();
        let asked_ms = self.clock_ms();
        let caller = Caller {
            worker,
            life,
            sequence,
            asked_ms,
        };
        self.seat.callers.insert(ticket, caller);
        ticket
    }

    /// Whether the worker has the blob or can get it from one of the owners it was told.
    pub(super) fn fetch(&self, worker: usize, blob: &BlobRef) -> bool {
        let serves = |owner: usize| {
            let fake = &self.workers[owner];
            fake.alive
                && self.conditions[owner].stopped_until_ms <= self.now_ms
                && fake.blobs.contains(&blob.hash)
                && !self.network.are_apart(worker, owner, self.now_ms)
        };
        let held_by = |address: &BlobAddress| match address {
            BlobAddress::File(path) => self.disk.get(path) == Some(&blob.hash),
            BlobAddress::Grpc(_) => {
                let owner = self
                    .workers
                    .iter()
                    .position(|fake| fake.address == *address);
                owner.is_some_and(serves)
            }
        };
        self.workers[worker].blobs.contains(&blob.hash) || blob.owners.iter().any(held_by)
    }
}
