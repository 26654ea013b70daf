//! The run's life, and what people do to it.

use retouch_proto::Iteration;
use retouch_proto::status::{Controlled, EventKind, RunState};

use super::io::{Command, Outcome, Output, Ticket};
use super::training::Retry;
use super::workers::Worker;
use super::{Alarm, Machine};

/// Where the run is in its life.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Phase {
    /// Work is given out.
    Running,
    /// No work is given out.
    Paused,
    /// The open iteration is the last one.
    Draining {
        /// That one.
        last: Iteration,
    },
    /// Open work is abandoned; the last committed state is written down, until this time.
    Stopping {
        /// When to end without that.
        until_ms: u64,
        /// Why the run can't go on, if that is why it stops.
        failure: Option<String>,
    },
    /// It is over, and workers are told.
    Over {
        /// How it ended.
        outcome: Outcome,
        /// When to exit without having told everybody.
        until_ms: u64,
        /// Whether the exit was put out.
        left: bool,
    },
}

impl Machine {
    pub(super) fn is_over(&self) -> bool {
        matches!(self.phase, Phase::Over { .. })
    }

    /// The run's state as people see it.
    pub fn state(&self) -> RunState {
        match &self.phase {
            Phase::Running => RunState::Running,
            Phase::Paused => RunState::Paused,
            Phase::Draining { .. } => RunState::Draining,
            Phase::Stopping { .. } => RunState::Stopping,
            Phase::Over { outcome, .. } if outcome.failure.is_some() => RunState::Failed,
            Phase::Over { .. } => RunState::Finished,
        }
    }

    pub(super) fn control(&mut self, ticket: Ticket, command: Command) {
        let message = self.obey(command);
        let state = self.state();
        let answer = message.map(|message| Controlled { state, message });
        self.outputs.push_back(Output::Controlled(ticket, answer));
    }

    /// Does it; tells what was done, or why it can't be.
    fn obey(&mut self, command: Command) -> Result<String, String> {
        match (command, &self.phase) {
            (Command::Pause, Phase::Running) => self.change(Phase::Paused),
            (Command::Resume, Phase::Paused) => self.change(Phase::Running),
            (Command::Drain, Phase::Running | Phase::Paused) => self.drain(),
            (Command::Stop, Phase::Running | Phase::Paused | Phase::Draining { .. }) => self.stop(),
            (Command::Checkpoint, Phase::Running | Phase::Paused | Phase::Draining { .. }) => {
                return self.ask_checkpoint();
            }
            (Command::DrainWorker(id), _) if !self.is_over() => return self.drain_worker(&id),
            (Command::RestartWorker(id), _) if !self.is_over() => return self.restart_worker(&id),
            // Said twice, or too late.
            _ => return Ok(format!("nothing to do: the run is {}", self.state())),
        }
        Ok(format!("the run is {}", self.state()))
    }

    fn ask_checkpoint(&mut self) -> Result<String, String> {
        let iteration = self.committed.iteration;
        if self.committed.state.is_none() {
            return Err("nothing was trained yet, so there is nothing to write down".into());
        }
        if self.checkpoint.committed.iteration == iteration && self.training.is_none() {
            return Ok(format!("iteration {iteration} has its checkpoint already"));
        }
        let when = match &self.training {
            Some(training) => format!(
                "iteration {} is written down once it is trained",
                training.iteration
            ),
            None => format!("iteration {iteration} is being written down"),
        };
        if !self.checkpoint_asked {
            self.checkpoint_asked = true;
            self.event(
                EventKind::Control,
                format!("a checkpoint was asked for: {when}"),
            );
        }
        Ok(when)
    }

    fn change(&mut self, phase: Phase) {
        self.phase = phase;
        self.event(EventKind::Control, format!("the run is {}", self.state()));
        self.progress();
    }

    fn drain(&mut self) {
        let last = self
            .open
            .keys()
            .next_back()
            .copied()
            .unwrap_or(self.committed.iteration);
        self.change(Phase::Draining { last });
    }

    /// Abandons what is open. A training step that is under way is finished: it is nearly an
    /// iteration.
    pub(super) fn stop(&mut self) {
        self.stop_for(None);
    }

    fn stop_for(&mut self, failure: Option<String>) {
        let until_ms = self.lease_deadline_ms();
        self.change(Phase::Stopping { until_ms, failure });
        self.look_at(until_ms);
        self.put_everything_back();
    }

    fn put_everything_back(&mut self) {
        let groups = self.open.values().flat_map(|open| open.groups());
        let busy: Vec<_> = groups
            .filter(|g| g.state().lease().is_some())
            .map(|g| g.drawn.group)
            .collect();
        busy.into_iter().for_each(|group| self.put_back(group));
    }

    /// All is done that will be done.
    pub(super) fn finish(&mut self) {
        if let Some(reason) = self.take_reason() {
            return self.fail_at_once(reason);
        }
        self.event(
            EventKind::Finished,
            format!("finished after iteration {}", self.committed.iteration),
        );
        self.conclude_run(None);
    }

    /// The run cannot go on; what it did is made durable first.
    pub(super) fn fail(&mut self, reason: String) {
        if self.failure().is_some() {
            // What failed first is the reason.
            return;
        }
        if self.checkpoint.committed.iteration == self.committed.iteration {
            return self.fail_at_once(reason);
        }
        let last = self.committed.iteration;
        let message =
            format!("iteration {last} is written down, since the run can't go on: {reason}");
        self.event(EventKind::Control, message);
        self.retry = Retry::default();
        self.stop_for(Some(reason));
    }

    /// The run cannot go on, and has nothing to make durable or can't.
    pub(super) fn fail_at_once(&mut self, reason: String) {
        self.event(EventKind::Failed, reason.clone());
        self.conclude_run(Some(reason));
    }

    /// The last committed iteration can't be made durable. If the run ends because of something
    /// else, that stays the reason.
    pub(super) fn fail_to_write_down(&mut self, problem: String) {
        let Some(reason) = self.take_reason() else {
            return self.fail_at_once(problem);
        };
        let message = format!("the last iteration can't be written down: {problem}");
        self.event(EventKind::Control, message);
        self.fail_at_once(reason);
    }

    fn take_reason(&mut self) -> Option<String> {
        match &mut self.phase {
            Phase::Stopping { failure, .. } => failure.take(),
            _ => None,
        }
    }

    fn conclude_run(&mut self, failure: Option<String>) {
        self.put_everything_back();
        let until_ms =
            self.now_ms + self.workers.silence_ms_max() + self.config.cluster.report_wait_ms_max;
        let outcome = Outcome {
            iteration: self.committed.iteration,
            ema_adapter: self.checkpoint.ema_adapter,
            failure,
            totals: self.totals,
        };
        self.phase = Phase::Over {
            outcome,
            until_ms,
            left: false,
        };
        let leases: Vec<_> = self.leases.iter().map(|(id, _)| *id).collect();
        for lease in leases {
            self.close_lease(lease);
        }
        self.training = None;
        let everyone: Vec<_> = self.workers.iter().map(|(id, _)| id.clone()).collect();
        self.touched.extend(everyone);
        self.alarms.insert((until_ms, Alarm::Look));
    }

    /// Puts out the exit once everyone alive was told, or had time enough.
    pub(super) fn leave(&mut self) {
        let Phase::Over {
            outcome,
            until_ms,
            left,
        } = &mut self.phase
        else {
            return;
        };
        let is_told = |worker: &Worker| worker.dismissed || !worker.is_alive();
        let due =
            *until_ms <= self.now_ms || self.workers.iter().all(|(_, worker)| is_told(worker));
        if due && !*left {
            *left = true;
            self.outputs.push_back(Output::Exit(outcome.clone()));
        }
    }
}
