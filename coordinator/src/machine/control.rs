//! What people do to the run.

use retouch_proto::status::{Controlled, EventKind, RunState};

use super::Machine;
use super::io::{Command, Output, Ticket};
use super::phase::Phase;
use super::record::Entry;

impl Machine {
    pub(super) fn is_over(&self) -> bool {
        self.phase.is_over()
    }

    /// The run's state as people see it.
    pub fn state(&self) -> RunState {
        self.phase.state()
    }

    pub(super) fn control(&mut self, ticket: Ticket, command: Command) {
        let message = self.obey(command);
        let state = self.state();
        let answer = message.map(|message| Controlled { state, message });
        self.outputs.push_back(Output::Controlled(ticket, answer));
    }

    /// Gives what was done, or why it can't be.
    fn obey(&mut self, command: Command) -> Result<String, String> {
        match (command, &self.phase) {
            _ if self.phase.is_suspended() => {
                return Err("the coordinator is ending; say it again to the next one".to_owned());
            }
            (Command::Pause, Phase::Running) => self.change(Phase::Paused),
            (Command::Resume, Phase::Paused) => self.change(Phase::Running),
            (Command::Drain, Phase::Running | Phase::Paused) => self.drain(),
            (Command::Stop, Phase::Running | Phase::Paused | Phase::Draining { .. }) => self.stop(),
            (Command::Checkpoint, Phase::Running | Phase::Paused | Phase::Draining { .. }) => {
                return self.ask_checkpoint();
            }
            (Command::DrainWorker(id), _) if !self.is_over() => return self.drain_worker(&id),
            (Command::RestartWorker(id), _) if !self.is_over() => return self.restart_worker(&id),
            // Said twice, or too late: no error, since what the person wants is the case or can't be any more.
            _ => return Ok(format!("nothing to do: the run is {}", self.state())),
        }
        Ok(format!("the run is {}", self.state()))
    }

    fn ask_checkpoint(&mut self) -> Result<String, String> {
        let iteration = self.progress.committed().iteration;
        if self.progress.committed().state.is_none() {
            return Err("nothing was trained yet, so there is nothing to write down".into());
        }
        if self.progress.is_checkpointed() && !self.learning.is_training() {
            return Ok(format!("iteration {iteration} has its checkpoint already"));
        }
        let when = match self.learning.training() {
            Some(training) => format!(
                "iteration {} is written down once it is trained",
                training.iteration
            ),
            None => format!("iteration {iteration} is being written down"),
        };
        if !self.learning.is_checkpoint_asked() {
            self.learning.ask_checkpoint();
            self.event(
                EventKind::Control,
                format!("a checkpoint was asked for: {when}"),
            );
        }
        Ok(when)
    }

    pub(super) fn change(&mut self, phase: Phase) {
        self.phase = phase;
        // Before it is answered: an order holds whatever becomes of this process.
        self.record(Entry::Stands(self.phase.standing()));
        self.event(EventKind::Control, format!("the run is {}", self.state()));
        self.moved();
    }

    /// The newest open iteration is the last one: samples that are made already are not thrown away.
    fn drain(&mut self) {
        let open = self.open.last().map(|open| open.iteration);
        let last = open.unwrap_or(self.progress.committed().iteration);
        self.change(Phase::Draining { last });
    }
}
