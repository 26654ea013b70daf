//! The seat of the coordinator in the virtual world: a process, while there is one, and what outlives it.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use retouch_proto::LeaseId;

use super::checks::record::RecordCheck;
use super::memory::Memory;
use crate::machine::Machine;
use crate::machine::io::{Input, Ticket};

/// Who waits for an answer of the machine.
pub(super) struct Caller {
    pub(super) worker: usize,
    pub(super) life: u64,
    pub(super) sequence: u64,
    pub(super) asked_ms: u64,
}

/// When a coordinator dies that is to die at a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AtWrite {
    Before,
    After,
}

/// A coordinator process, while there is one, and what outlives it.
pub(super) struct Seat {
    pub(super) machine: Option<Machine>,
    pub(super) memory: Memory,
    pub(super) check: RecordCheck,
    pub(super) callers: BTreeMap<Ticket, Caller>,
    pub(super) hung_up: BTreeSet<Ticket>,
    pub(super) stopped_until_ms: u64,
    pub(super) dies: Option<AtWrite>,
    /// What its clock shows beyond the world's time.
    pub(super) clock_ahead_ms: i64,
    /// Batches written so far, over all lives.
    pub(super) writes: u64,
    /// If set, it dies at the write of that number.
    pub(super) dies_at: Option<(u64, AtWrite)>,
    pub(super) inbox: VecDeque<Input>,
    tickets: u64,
    /// The earliest alarm that is planned.
    pub(super) alarm_ms: Option<u64>,
    /// Who was given each lease: nobody else may ever be.
    pub(super) given: HashMap<LeaseId, (usize, u64)>,
}

impl Seat {
    pub(super) fn new() -> Self {
        Self {
            machine: None,
            memory: Memory::new(),
            check: RecordCheck::default(),
            callers: BTreeMap::new(),
            hung_up: BTreeSet::new(),
            stopped_until_ms: 0,
            dies: None,
            clock_ahead_ms: 0,
            writes: 0,
            dies_at: None,
            inbox: VecDeque::new(),
            tickets: 0,
            alarm_ms: None,
            given: HashMap::new(),
        }
    }

    pub(super) fn ticket(&mut self) -> Ticket {
        self.tickets += 1;
        Ticket(self.tickets)
    }

    /// Nothing of the process is left.
    pub(super) fn vacate(&mut self) {
        self.machine = None;
        self.callers.clear();
        self.hung_up.clear();
        self.inbox.clear();
        self.stopped_until_ms = 0;
        self.dies = None;
        self.alarm_ms = None;
    }
}
