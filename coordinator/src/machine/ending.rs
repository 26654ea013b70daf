//! How the run ends: what is durable first, then workers are dismissed, then the coordinator exits.

use retouch_proto::GroupId;
use retouch_proto::status::EventKind;

use super::Machine;
use super::io::{Outcome, Output};
use super::learning::Retry;
use super::phase::Phase;
use super::timers::Timer;
use super::workers::Worker;

impl Machine {
    /// Abandons what is open. A training step that is under way is finished: it is nearly an
    /// iteration.
    pub(super) fn stop(&mut self) {
        self.stop_for(None);
    }

    fn stop_for(&mut self, failure: Option<String>) {
        let until_ms = self.lease_deadline_ms();
        self.change(Phase::Stopping { until_ms, failure });
        self.timers.look_at(until_ms);
        self.put_everything_back();
    }

    fn put_everything_back(&mut self) {
        let busy = self
            .open
            .groups()
            .filter(|group| group.state().lease().is_some());
        let busy: Vec<GroupId> = busy.map(|group| group.drawn.group).collect();
        busy.into_iter().for_each(|group| self.put_back(group));
    }

    /// All is done that will be done.
    pub(super) fn finish(&mut self) {
        if let Some(reason) = self.phase.take_failure() {
            return self.fail_at_once(reason);
        }
        let last = self.progress.committed().iteration;
        let message = format!("finished after iteration {last}");
        self.event(EventKind::Finished, message);
        self.conclude_run(None);
    }

    /// The run cannot go on; what it did is made durable first.
    pub(super) fn fail(&mut self, reason: String) {
        if self.phase.failure().is_some() {
            // What failed first is the reason.
            return;
        }
        if self.progress.is_checkpointed() {
            return self.fail_at_once(reason);
        }
        let last = self.progress.committed().iteration;
        let message =
            format!("iteration {last} is written down, since the run can't go on: {reason}");
        self.event(EventKind::Control, message);
        // Attempts at the iteration that failed are none at writing the last one down.
        self.learning.retry = Retry::default();
        self.stop_for(Some(reason));
    }

    /// The run cannot go on, and has nothing to make durable or can't.
    fn fail_at_once(&mut self, reason: String) {
        self.event(EventKind::Failed, reason.clone());
        self.conclude_run(Some(reason));
    }

    /// The last committed iteration can't be made durable. If the run ends because of something
    /// else, that stays the reason.
    pub(super) fn fail_to_write_down(&mut self, problem: String) {
        let Some(reason) = self.phase.take_failure() else {
            return self.fail_at_once(problem);
        };
        let message = format!("the last iteration can't be written down: {problem}");
        self.event(EventKind::Control, message);
        self.fail_at_once(reason);
    }

    fn conclude_run(&mut self, failure: Option<String>) {
        self.put_everything_back();
        // A worker that lives asks for work within this time, and is told then.
        let until_ms = self.timers.now_ms()
            + self.workers.silence_ms_max()
            + self.config.cluster.report_wait_ms_max;
        let outcome = Outcome {
            iteration: self.progress.committed().iteration,
            ema_adapter: self.progress.checkpoint().ema_adapter,
            failure,
            totals: self.telemetry.totals,
        };
        self.phase = Phase::Over {
            outcome,
            until_ms,
            left: false,
        };
        self.close_all_leases();
        self.learning.end();
        self.workers.touch_all();
        self.timers.set(until_ms, Timer::Look);
    }

    /// Puts out the exit once everyone alive was told, or had time enough.
    pub(super) fn exit_if_over(&mut self) {
        let Phase::Over {
            outcome,
            until_ms,
            left,
        } = &mut self.phase
        else {
            return;
        };
        let is_told = |worker: &Worker| worker.dismissed || !worker.is_alive();
        let due = *until_ms <= self.timers.now_ms()
            || self.workers.iter().all(|(_, worker)| is_told(worker));
        if due && !*left {
            *left = true;
            self.outputs.push_back(Output::Exit(outcome.clone()));
        }
    }
}
