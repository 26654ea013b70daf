//! How messages and blobs travel in the virtual world: late, lost, doubled, overtaken and cut off.

use retouch_proto::{BlobAddress, BlobRef};

use super::events::{Event, Message};
use super::network::Way;
use super::seat::Caller;
use super::world::World;
use crate::machine::io::{Input, Ticket};

/// A message that takes longer is counted as late.
const LATE_MS: u64 = 250;

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
