//! Work given and taken back: a lease, its timer and its worker's list always change together.

use retouch_proto::{LeaseId, WorkerId};

use super::Machine;
use super::leases::{Lease, Work};
use super::timers::Timer;

impl Machine {
    pub(super) fn lease_deadline_ms(&self) -> u64 {
        self.timers.now_ms() + self.config.cluster.lease_s * 1000
    }

    /// Gives a worker a new lease; its next answer carries the task.
    pub(super) fn grant(&mut self, worker: &WorkerId, work: Work) -> LeaseId {
        let lease = self.lease(worker, work);
        let id = self.leases.next_id();
        self.enter(id, lease);
        id
    }

    /// Takes over a lease from before a restart, under its old name, which the worker knows it by.
    pub(super) fn adopt_lease(&mut self, id: LeaseId, worker: &WorkerId, work: Work) {
        let lease = self.lease(worker, work);
        self.enter(id, lease);
    }

    fn lease(&self, worker: &WorkerId, work: Work) -> Lease {
        Lease {
            worker: worker.clone(),
            work,
            deadline_ms: self.lease_deadline_ms(),
        }
    }

    fn enter(&mut self, id: LeaseId, lease: Lease) {
        self.timers.set(lease.deadline_ms, Timer::Lease(id));
        if let Some(worker) = self.workers.get_mut(&lease.worker) {
            worker.leases.insert(id);
        }
        self.workers.touch(&lease.worker);
        self.leases.insert(id, lease);
    }

    /// Ends a lease, whatever became of the work. If its worker still runs it, its next answer cancels it.
    pub(super) fn close_lease(&mut self, id: LeaseId) -> Option<Lease> {
        let lease = self.leases.remove(id)?;
        self.timers.cancel(lease.deadline_ms, Timer::Lease(id));
        if let Some(worker) = self.workers.get_mut(&lease.worker) {
            worker.leases.remove(&id);
        }
        self.workers.touch(&lease.worker);
        Some(lease)
    }

    pub(super) fn close_all_leases(&mut self) {
        let ids: Vec<LeaseId> = self.leases.iter().map(|(id, _)| *id).collect();
        for id in ids {
            self.close_lease(id);
        }
    }
}
