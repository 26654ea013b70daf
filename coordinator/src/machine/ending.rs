//! How the run ends: what is durable first, then workers are dismissed, then the coordinator exits.

use retouch_proto::GroupId;
use retouch_proto::status::EventKind;

use super::Machine;
use super::io::{Outcome, Output};
use super::learning::{Purpose, Retry};
use super::phase::{Phase, Why};
use super::record::{Committed, Entry, Standing};
use super::timers::Timer;
use super::workers::Worker;

/// How long the last committed iteration may take to be written down when the process is to end: clusters wait for
/// half a minute between SIGTERM and SIGKILL.
const SUSPENSION_MS_MAX: u64 = 20_000;

impl Machine {
    /// Abandons what is open. A training step that is under way is finished: it is nearly an
    /// iteration.
    pub(super) fn stop(&mut self) {
        self.stop_by(self.lease_deadline_ms(), Why::Ordered);
    }

    fn stop_by(&mut self, until_ms: u64, why: Why) {
        self.change(Phase::Stopping { until_ms, why });
        self.timers.look_at(until_ms);
        // What failed or was prepared on the way to the next iteration says nothing about writing the last one down.
        self.learning.retry = Retry::default();
        self.stop_minting();
        self.put_everything_back();
    }

    /// This process has little time left. A training step that is under way would take too long, unless it only writes
    /// the last committed iteration down: that is what is wanted.
    pub(super) fn suspend(&mut self) {
        if self.is_over() || self.phase.is_suspended() {
            return;
        }
        let standing = self.phase.standing();
        let training = self.learning.training();
        if training.is_some_and(|training| training.purpose == Purpose::Learn) {
            self.abort_training();
        }
        self.stop_by(
            self.timers.now_ms() + SUSPENSION_MS_MAX,
            Why::Suspension(standing),
        );
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
        if let Some(reason) = self.phase.failure().cloned() {
            return self.fail_at_once(reason);
        }
        let last = self.progress.committed().iteration;
        if self.phase.is_suspended() {
            let message = format!("suspended after iteration {last}");
            self.event(EventKind::Control, message);
            return self.conclude_run(None);
        }
        if let Some(reason) = self.nothing_learned() {
            return self.fail_at_once(reason);
        }
        let message = format!("finished after iteration {last}");
        self.event(EventKind::Finished, message);
        self.conclude_run(None);
    }

    /// A run that did all its iterations without a lesson in any of them has failed.
    fn nothing_learned(&self) -> Option<String> {
        let Committed { iteration, .. } = self.progress.committed();
        if iteration.0 < self.config.iterations {
            return None;
        }
        if self.telemetry.totals.groups_kept == 0 {
            return Some(format!(
                "nothing was learned: filter.rule = {} kept no group of {iteration} iterations",
                self.config.filter.rule
            ));
        }
        let mut spreads = self.telemetry.history().map(|last| last.reward_std_mean);
        spreads.all(|spread| spread == 0.0).then(|| {
            "nothing was learned: the judge gives all samples of a group the same reward".to_owned()
        })
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
        self.stop_by(self.lease_deadline_ms(), Why::Failure(reason));
    }

    /// The run cannot go on, and has nothing to make durable or can't.
    fn fail_at_once(&mut self, reason: String) {
        self.event(EventKind::Failed, reason.clone());
        self.conclude_run(Some(reason));
    }

    /// The last committed iteration can't be made durable. If the run ends because of something
    /// else, that stays the reason.
    pub(super) fn fail_to_write_down(&mut self, problem: String) {
        let message = format!("the last iteration can't be written down: {problem}");
        if self.phase.is_suspended() {
            self.event(EventKind::Control, message);
            return self.conclude_run(None);
        }
        let Some(reason) = self.phase.failure().cloned() else {
            return self.fail_at_once(problem);
        };
        self.event(EventKind::Control, message);
        self.fail_at_once(reason);
    }

    fn conclude_run(&mut self, failure: Option<String>) {
        self.put_everything_back();
        // A worker that lives asks for work within this time, and is told then.
        let until_ms = self.timers.now_ms()
            + self.workers.silence_ms_max()
            + self.config.cluster.report_wait_ms_max;
        let standing = self.standing_at_the_end(&failure);
        self.record(Entry::Stands(standing.clone()));
        let outcome = Outcome {
            iteration: self.progress.committed().iteration,
            ema_adapter: self.progress.checkpoint().ema_adapter,
            failure,
            suspended: self.phase.is_suspended(),
            checkpointed: self.progress.is_checkpointed(),
            totals: self.telemetry.totals,
        };
        self.phase = Phase::Over {
            outcome,
            standing,
            until_ms,
            left: false,
        };
        self.close_all_leases();
        self.learning.end();
        self.workers.touch_all();
        self.timers.set(until_ms, Timer::Look);
    }

    /// How whoever starts the run again finds it.
    fn standing_at_the_end(&self, failure: &Option<String>) -> Standing {
        let done = self.progress.committed().iteration.0 >= self.config.iterations;
        match (failure, self.phase.standing()) {
            (Some(reason), _) => Standing::Failed {
                reason: reason.clone(),
            },
            (None, standing) if self.phase.is_suspended() => standing,
            // It may get more iterations than it was planned to have.
            _ if done => Standing::Running,
            _ => Standing::Stopped,
        }
    }

    /// Puts out the exit once everyone alive was told, or had time enough. Of a suspension workers hear nothing: they
    /// wait for the next coordinator.
    pub(super) fn exit_if_over(&mut self) {
        let Phase::Over {
            outcome,
            until_ms,
            left,
            ..
        } = &mut self.phase
        else {
            return;
        };
        let is_told = |worker: &Worker| worker.dismissed || !worker.is_alive();
        let due = outcome.suspended
            || *until_ms <= self.timers.now_ms()
            || self.workers.iter().all(|(_, worker)| is_told(worker));
        if due && !*left {
            *left = true;
            self.outputs.push_back(Output::Exit(outcome.clone()));
        }
    }
}
