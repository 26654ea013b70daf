//! Workers that a person sends away: when nothing is lost with them, or at once to be started again.
//!
//! An order is for one generation: a worker that registers again is a new one and takes work (A10).

use retouch_proto::WorkerId;
use retouch_proto::status::{EventKind, Presence};
use retouch_proto::worker::{Directive, Report, ReportReply, Role};

use super::Machine;
use super::io::Ticket;
use super::workers::Worker;

/// Names told to somebody who gave an unknown one.
const NAMES_MAX: usize = 8;

/// What a person wants of one worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// It finishes, gets no more, and goes once nothing is lost with it, or at this time (A7).
    Leave {
        /// When at the latest.
        by_ms: u64,
    },
    /// It ends now and is started again.
    Restart,
}

impl Order {
    fn directive(self) -> Directive {
        match self {
            Self::Leave { .. } => Directive::Shutdown,
            Self::Restart => Directive::Restart,
        }
    }
}

impl Machine {
    pub(super) fn drain_worker(&mut self, id: &WorkerId) -> Result<String, String> {
        if self.living(id)?.order.is_some() {
            return Ok(format!("{id} is leaving already"));
        }
        let by_ms = self.lease_deadline_ms();
        self.order(id, Order::Leave { by_ms });
        let lease_s = self.config.cluster.lease_s;
        let message = format!(
            "worker {id} gets no more work and leaves when nothing is lost with it, or in {lease_s} s"
        );
        self.event(EventKind::Control, message.clone());
        Ok(message)
    }

    pub(super) fn restart_worker(&mut self, id: &WorkerId) -> Result<String, String> {
        if self.living(id)?.order == Some(Order::Restart) {
            return Ok(format!("{id} is being restarted already"));
        }
        self.order(id, Order::Restart);
        let message =
            format!("worker {id} is told to end and to be started again; others get its work");
        self.event(EventKind::Control, message.clone());
        Ok(message)
    }

    fn living(&self, id: &WorkerId) -> Result<&Worker, String> {
        let worker = self.workers.get(id).filter(|worker| worker.is_alive());
        worker.ok_or_else(|| format!("no worker {id} is in the run; {}", self.who_is_there()))
    }

    fn who_is_there(&self) -> String {
        let alive = self.workers.iter().filter(|(_, worker)| worker.is_alive());
        let names: Vec<&str> = alive.map(|(id, _)| id.as_str()).collect();
        let shown = names[..names.len().min(NAMES_MAX)].join(", ");
        match names.len() {
            0 => "nobody is".to_owned(),
            1..=NAMES_MAX => format!("there are {shown}"),
            more => format!("there are {shown} and {} more", more - NAMES_MAX),
        }
    }

    fn order(&mut self, id: &WorkerId, order: Order) {
        if let Some(worker) = self.workers.get_mut(id) {
            worker.order = Some(order);
            worker.presence = Presence::Leaving;
        }
        self.touch(id);
    }

    /// Lets those go who wait for an answer and have an order that can be carried out.
    pub(super) fn part(&mut self) {
        if self.is_over() {
            return;
        }
        let due = |id: &&WorkerId| self.parting(id).is_some();
        let leaving: Vec<WorkerId> = self.touched.iter().filter(due).cloned().collect();
        self.secure_state();
        for id in leaving {
            let Some(order) = self.parting(&id) else {
                continue;
            };
            let reply = self.nothing(order.directive());
            self.send(&id, reply);
            let why = match order {
                Order::Leave { .. } => "drained",
                Order::Restart => "ended to be started again",
            };
            self.end_worker(&id, Presence::Left, why);
        }
    }

    /// A learner that alone holds the state writes it down before it goes (A8).
    fn secure_state(&mut self) {
        let alone = |id: &WorkerId| {
            let leaving = |worker: &&Worker| matches!(worker.order, Some(Order::Leave { .. }));
            let learner = self.workers.get(id).filter(leaving);
            learner.is_some_and(|worker| worker.role == Role::Learner)
                && self.blobs.is_only_owner(id)
        };
        let alone = self.committed.state.is_some() && self.touched.iter().any(alone);
        self.checkpoint_asked |= alone && self.training.is_none();
    }

    fn parting(&self, id: &WorkerId) -> Option<Order> {
        let worker = self
            .workers
            .get(id)
            .filter(|worker| worker.held.is_some())?;
        match worker.order? {
            Order::Restart => Some(Order::Restart),
            Order::Leave { by_ms } => {
                let late = by_ms <= self.now_ms;
                let free = worker.leases.is_empty() && (late || !self.blobs.is_only_owner(id));
                free.then_some(Order::Leave { by_ms })
            }
        }
    }

    /// Tells a generation that has left once more that it should: it may not have heard.
    pub(super) fn tell_again(&mut self, ticket: Ticket, report: &Report) -> bool {
        let Some(worker) = self.workers.get(&report.worker) else {
            return false;
        };
        let left = worker.presence == Presence::Left && worker.generation == report.generation;
        let Some(order) = worker.order.filter(|_| left) else {
            return false;
        };
        self.reply_nothing(ticket, order.directive());
        true
    }

    /// An answer that only says what the worker is to do with itself.
    pub(super) fn nothing(&self, directive: Directive) -> ReportReply {
        ReportReply {
            assignments: Vec::new(),
            cancel: Vec::new(),
            prefetch: Vec::new(),
            directive,
            committed: self.committed.iteration,
        }
    }
}
