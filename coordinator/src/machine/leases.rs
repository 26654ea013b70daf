//! Leases: which worker works on what, and until when.

use std::collections::HashMap;

use retouch_proto::{GroupId, LeaseId, WorkerId};

/// One task given to one worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Lease {
    /// Who has it.
    pub worker: WorkerId,
    /// What it is for.
    pub work: Work,
    /// When the task is given to someone else.
    pub deadline_ms: u64,
}

/// What a lease is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Work {
    /// To sample a group.
    Rollout(GroupId),
    /// To score a group.
    Score(GroupId),
    /// To train as one rank.
    Train,
    /// To mint an epoch's unique id.
    Mint,
}

/// All leases.
pub(super) struct Leases {
    next: u64,
    active: HashMap<LeaseId, Lease>,
}

impl Leases {
    /// Numbers them from the coordinator's incarnation, so that no name is ever given twice.
    pub(super) fn new(incarnation: u32) -> Self {
        Self {
            next: u64::from(incarnation) << 32,
            active: HashMap::new(),
        }
    }

    /// A name that no lease had before.
    pub(super) fn next_id(&mut self) -> LeaseId {
        self.next += 1;
        LeaseId(self.next)
    }

    /// Adds a lease.
    pub(super) fn insert(&mut self, id: LeaseId, lease: Lease) {
        self.active.insert(id, lease);
    }

    /// The lease, if it is still active.
    pub(super) fn get(&self, id: LeaseId) -> Option<&Lease> {
        self.active.get(&id)
    }

    /// Takes a lease out.
    pub(super) fn remove(&mut self, id: LeaseId) -> Option<Lease> {
        self.active.remove(&id)
    }

    /// All of them, in no order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&LeaseId, &Lease)> {
        self.active.iter()
    }
}
