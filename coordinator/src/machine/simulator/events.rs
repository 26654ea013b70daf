//! What happens in the virtual world, in the order of its clock, and the messages that arrive.

use std::cmp::Ordering;

use retouch_proto::worker::{Registration, Report, ReportReply};
use retouch_proto::{Generation, LeaseId};

use crate::machine::io::Ticket;

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

/// What happens next, somewhere.
#[derive(Clone, Debug)]
pub(super) enum Event {
    /// A message reaches the coordinator.
    Arrives(Box<Message>),
    /// The coordinator looks at what has arrived.
    Shell,
    /// A message reaches a worker.
    Answered {
        worker: usize,
        life: u64,
        answer: Box<Answer>,
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
    CoordinatorStarts,
    Resumes,
    Strikes,
}

impl Event {
    /// The worker whose process it happens in.
    pub(super) fn worker(&self) -> Option<usize> {
        match self {
            Self::Answered { worker, .. }
            | Self::ReportDue { worker, .. }
            | Self::AnswerOverdue { worker, .. }
            | Self::TaskEnds { worker, .. }
            | Self::TaskBreaks { worker, .. } => Some(*worker),
            _ => None,
        }
    }
}

/// An event at its time; the earliest is the greatest, so that a heap gives it first.
pub(super) struct Planned {
    pub(super) at_ms: u64,
    pub(super) order: u64,
    pub(super) event: Event,
}

impl Planned {
    fn key(&self) -> (u64, u64) {
        (self.at_ms, self.order)
    }
}

impl PartialEq for Planned {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl Eq for Planned {}

impl PartialOrd for Planned {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Planned {
    fn cmp(&self, other: &Self) -> Ordering {
        other.key().cmp(&self.key())
    }
}
