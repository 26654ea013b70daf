//! Workers that go, since a person sends them away or their process is to end: when nothing is lost with them, or at
//! once to be started again.
//!
//! An order is for one generation: a worker that registers again is a new one and takes work (A10).

use retouch_proto::WorkerId;
use retouch_proto::status::{EventKind, Presence};
use retouch_proto::worker::{Directive, Report, ReportReply, Role};

use super::Machine;
use super::workers::{Order, Worker};

/// Names told to somebody who gave an unknown one.
const NAMES_MAX: usize = 8;

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

    /// A worker whose process was told to end is let go like one that is drained: when nothing is lost with it.
    pub(super) fn leaves_by_itself(&mut self, id: &WorkerId) {
        let by_ms = self.lease_deadline_ms();
        let worker = self.workers.get_mut(id);
        if let Some(worker) = worker.filter(|worker| worker.order.is_none()) {
            worker.order = Some(Order::Leave { by_ms });
            worker.presence = Presence::Leaving;
        }
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
        self.workers.touch(id);
    }

    /// Lets those go who wait for an answer and have an order that can be carried out.
    pub(super) fn let_go(&mut self) {
        if self.is_over() {
            return;
        }
        let due = |(id, worker): (&WorkerId, &Worker)| {
            self.order_due(id, worker).is_some().then(|| id.clone())
        };
        let leaving: Vec<WorkerId> = self.workers.touched().filter_map(due).collect();
        self.secure_state();
        for id in leaving {
            let worker = self.workers.get(&id);
            let Some(order) = worker.and_then(|worker| self.order_due(&id, worker)) else {
                continue;
            };
            let reply = self.nothing(order.directive());
            self.send(&id, reply);
            let why = match order {
                Order::Leave { .. } => "has left",
                Order::Restart => "ended to be started again",
            };
            self.end_worker(&id, Presence::Left, why);
        }
    }

    /// A learner that alone holds the state writes it down before it goes (A8).
    fn secure_state(&mut self) {
        let alone = |(id, worker): (&WorkerId, &Worker)| {
            worker.role == Role::Learner
                && matches!(worker.order, Some(Order::Leave { .. }))
                && self.blobs.is_only_owner(id)
        };
        let alone = self.workers.touched().any(alone);
        // A step under way makes a new state, which every rank holds.
        if alone && self.progress.committed().state.is_some() && !self.learning.is_training() {
            self.learning.ask_checkpoint();
        }
    }

    /// The worker's order, if it can be carried out now.
    fn order_due(&self, id: &WorkerId, worker: &Worker) -> Option<Order> {
        // Whoever does not wait for an answer can't be told.
        worker.held.as_ref()?;
        let order = worker.order?;
        let due = match order {
            Order::Restart => true,
            Order::Leave { by_ms } => {
                let late = by_ms <= self.timers.now_ms();
                worker.leases.is_empty() && (late || !self.blobs.is_only_owner(id))
            }
        };
        due.then_some(order)
    }

    /// What to say to a generation that is over. One that has left may not have heard that it should.
    pub(super) fn directive_to_the_gone(&self, report: &Report) -> Directive {
        let worker = self.workers.get(&report.worker);
        let left = worker.filter(|worker| {
            worker.presence == Presence::Left && worker.generation == report.generation
        });
        let order = left.and_then(|worker| worker.order);
        order.map_or(Directive::Reregister, Order::directive)
    }

    /// An answer that only says what the worker is to do with itself.
    pub(super) fn nothing(&self, directive: Directive) -> ReportReply {
        ReportReply {
            assignments: Vec::new(),
            cancel: Vec::new(),
            prefetch: Vec::new(),
            directive,
            committed: self.progress.committed().iteration,
        }
    }
}
