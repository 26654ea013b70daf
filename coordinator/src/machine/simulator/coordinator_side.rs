//! The coordinator of the virtual world: machine, record, and the shell between them and the rest.

use retouch_proto::status::{Controlled, RunState};
use retouch_proto::task::Task;
use retouch_proto::worker::ReportReply;

use super::checks;
use super::events::{Answer, Event};
use super::network::Way;
use super::seat::{AtWrite, Caller};
use super::world::World;
use crate::machine::Machine;
use crate::machine::io::{Command, Input, Outcome, Output, Ticket};
use crate::machine::record::{Entry, Policy, Standing};

/// Somebody who paused the run says so often that it is to go on.
pub(super) const RESUME_EVERY_MS: u64 = 700;
/// A machine is rebuilt from the record and compared after one batch of so many.
const REBUILD_EVERY: u64 = 16;

impl World {
    /// The time that the coordinator sees.
    pub(super) fn clock_ms(&self) -> u64 {
        self.now_ms.saturating_add_signed(self.seat.clock_ahead_ms)
    }

    pub(super) fn start_coordinator(&mut self) {
        if self.seat.machine.is_some() {
            return;
        }
        if self.now_ms < self.disk_full_until_ms {
            self.tell("coordinator", || {
                "can't start: no space left on disk".into()
            });
            let delay_ms = self.random.within(100..500);
            return self.after(delay_ms, Event::CoordinatorStarts);
        }
        self.tally.coordinator_starts += 1;
        let record = self.seat.memory.load();
        self.tell("coordinator", || {
            let committed = record.committed.iteration;
            format!("starts from iteration {committed} of the record")
        });
        self.seat.machine = Some(self.machine_from(record));
        self.let_out(0);
    }

    fn machine_from(&self, record: crate::machine::record::Record) -> Machine {
        let (config, rows) = (self.scenario.config.clone(), self.scenario.rows.clone());
        Machine::new(config, rows, record, self.clock_ms())
    }

    /// Queues something for the coordinator, which looks at its queue a moment later.
    pub(super) fn ask(&mut self, input: Input) {
        if self.seat.machine.is_none() {
            return;
        }
        if self.seat.inbox.is_empty() {
            let delay_ms = self.random.within(0..3);
            self.after(delay_ms, Event::Shell);
        }
        self.seat.inbox.push_back(input);
    }

    /// All that has arrived is one batch, as in the real shell.
    pub(super) fn shell(&mut self) {
        let inputs = std::mem::take(&mut self.seat.inbox);
        if !inputs.is_empty() {
            self.handle(inputs);
        }
    }

    fn handle(&mut self, inputs: impl IntoIterator<Item = Input>) {
        let clock_ms = self.clock_ms();
        let Some(machine) = &mut self.seat.machine else {
            return;
        };
        let mut count = 0;
        for input in inputs {
            count += 1;
            if let Input::HungUp(ticket) = &input {
                self.seat.callers.remove(ticket);
                self.seat.hung_up.insert(*ticket);
            }
            machine.handle(clock_ms, input);
            checks::machine(machine);
        }
        self.let_out(count);
    }

    /// What the shell does after so many inputs: first the record, then everything else. It may die
    /// in between.
    fn let_out(&mut self, inputs: usize) {
        let Some(machine) = &mut self.seat.machine else {
            return;
        };
        let outputs: Vec<Output> = std::iter::from_fn(|| machine.poll()).collect();
        checks::outputs(&outputs, inputs, machine);
        self.check_orders(&outputs);
        let wrote = outputs.iter().any(|o| matches!(o, Output::Record(_)));
        if wrote && !self.write_batch(&outputs) {
            return;
        }
        self.plan_alarm();
        let mut outcome = None;
        for output in outputs {
            match output {
                Output::Exit(exit) => outcome = Some(exit),
                other => self.output(other),
            }
        }
        self.check_callers();
        if let Some(outcome) = outcome {
            self.exit(outcome);
        }
    }

    /// Writes a batch, all of it or nothing; tells whether the coordinator is alive afterwards.
    fn write_batch(&mut self, outputs: &[Output]) -> bool {
        self.seat.writes += 1;
        let dies = match self.seat.dies_at {
            Some((write, when)) if write == self.seat.writes => Some(when),
            _ => self.seat.dies,
        };
        if self.now_ms < self.disk_full_until_ms {
            self.coordinator_dies("its record can't be written: no space left on disk");
            return false;
        }
        if dies == Some(AtWrite::Before) {
            self.coordinator_dies("it is killed before it has written");
            return false;
        }
        for output in outputs {
            if let Output::Record(entry) = output {
                self.write(entry);
            }
        }
        self.check_record();
        if dies == Some(AtWrite::After) {
            self.coordinator_dies("it is killed when it has written and said nothing yet");
            return false;
        }
        true
    }

    /// What people are told of the run is recorded before they are told.
    fn check_orders(&self, outputs: &[Output]) {
        let mut standing = self.seat.memory.standing();
        for output in outputs {
            match output {
                Output::Record(Entry::Stands(stands)) => standing = stands,
                Output::Controlled(_, Ok(Controlled { state, .. })) => {
                    let recorded = match standing {
                        Standing::Running => [RunState::Running, RunState::Finished],
                        Standing::Paused => [RunState::Paused; 2],
                        Standing::Draining { .. } => [RunState::Draining; 2],
                        Standing::Stopping { .. } => [RunState::Stopping; 2],
                        Standing::Stopped => [RunState::Finished; 2],
                        Standing::Failed { .. } => [RunState::Failed; 2],
                    };
                    assert!(
                        recorded.contains(state),
                        "somebody is told that the run is {state}, and {standing:?} is recorded (A8)"
                    );
                }
                _ => {}
            }
        }
    }

    fn write(&mut self, entry: &Entry) {
        let repeatable =
            !self.scenario.faults.can_fail_tasks() && !self.scenario.faults.other_devices;
        let staleness_max = self.scenario.config.rollout.staleness_max;
        let seat = &mut self.seat;
        seat.check
            .entry(entry, &seat.memory, staleness_max, repeatable);
        seat.memory.write(entry);
        if let Entry::Event(event) = entry {
            self.tell("coordinator", || event.message.clone());
        }
        #[cfg(test)]
        self.recorded.push(entry.clone());
    }

    /// The record alone must say what the machine would go on with.
    fn check_record(&mut self) {
        let machine = self.seat.machine.as_ref().expect("it just wrote");
        self.seat.memory.check_against(machine);
        if self.seat.writes.is_multiple_of(REBUILD_EVERY) {
            self.tally.rebuilt += 1;
            let rebuilt = self.machine_from(self.seat.memory.record());
            checks::rebuilt(machine, &rebuilt);
        }
    }

    /// Plans the next alarm, unless an earlier one is planned already.
    fn plan_alarm(&mut self) {
        let Some(machine) = &self.seat.machine else {
            return;
        };
        let due_ms = machine.next_deadline().expect("checked");
        let delay_ms = due_ms.saturating_sub(self.clock_ms());
        let at_ms = self.now_ms + delay_ms;
        if self.seat.alarm_ms.is_none_or(|planned| at_ms < planned) {
            self.seat.alarm_ms = Some(at_ms);
            self.after(delay_ms, Event::Deadline);
        }
    }

    pub(super) fn deadline(&mut self) {
        if self.seat.alarm_ms.is_some_and(|at_ms| at_ms <= self.now_ms) {
            self.seat.alarm_ms = None;
        }
        let clock_ms = self.clock_ms();
        let machine = self.seat.machine.as_ref();
        let due = machine.and_then(|machine| machine.next_deadline());
        if due.is_some_and(|due_ms| due_ms <= clock_ms) {
            self.handle([Input::Tick]);
        } else {
            self.plan_alarm();
        }
    }

    /// The clock shows another time than a moment ago.
    pub(super) fn clock_jumps(&mut self, by_ms: i64) {
        self.seat.clock_ahead_ms += by_ms;
        // Whoever measured before the jump does not measure the jump.
        for caller in self.seat.callers.values_mut() {
            caller.asked_ms = caller.asked_ms.saturating_add_signed(by_ms);
        }
        self.seat.alarm_ms = None;
        self.plan_alarm();
    }

    fn check_callers(&mut self) {
        let clock_ms = self.clock_ms();
        // A stopped or set back coordinator can't answer in time.
        let patience_ms = self.scenario.config.cluster.report_wait_ms_max + 12_000;
        let waits = |caller: &Caller| clock_ms.saturating_sub(caller.asked_ms) > patience_ms;
        assert!(
            !self.seat.callers.values().any(waits),
            "a report was held for too long (A7)"
        );
    }

    fn output(&mut self, output: Output) {
        match output {
            Output::Record(_) | Output::Event(_) | Output::Controlled(..) | Output::Exit(_) => {}
            Output::Registered(ticket, generation) => {
                self.deliver(ticket, |_| Answer::Registered(generation));
            }
            Output::Reply(ticket, reply) => {
                self.check_assignments(ticket, &reply);
                self.deliver(ticket, |sequence| Answer::Reply { sequence, reply });
            }
        }
    }

    /// A hung-up caller gets no answer, and nobody gets two.
    fn deliver(&mut self, ticket: Ticket, answer: impl FnOnce(u64) -> Answer) {
        let Some(caller) = self.seat.callers.remove(&ticket) else {
            let hung_up = self.seat.hung_up.remove(&ticket);
            return assert!(hung_up, "every ticket is answered once");
        };
        let Caller {
            worker,
            life,
            sequence,
            ..
        } = caller;
        let answer = Box::new(answer(sequence));
        let event = Event::Answered {
            worker,
            life,
            answer,
        };
        self.send(worker, Way::Down, event);
    }

    /// Work is given out under leases of one worker's life, and never of what is not recorded.
    fn check_assignments(&mut self, ticket: Ticket, reply: &ReportReply) {
        let Some(caller) = self.seat.callers.get(&ticket) else {
            return;
        };
        let holder = (caller.worker, caller.life);
        for assignment in &reply.assignments {
            let given = self.seat.given.entry(assignment.lease).or_insert(holder);
            assert_eq!(
                *given, holder,
                "lease {} was given to two (A10)",
                assignment.lease
            );
            // What was taken back by a later input of the same batch is cancelled by the next answer.
            let machine = self.seat.machine.as_ref().expect("it just answered");
            if machine.leases.get(assignment.lease).is_some() {
                self.check_versions(&assignment.task);
            }
        }
    }

    fn check_versions(&self, task: &Task) {
        let memory = &self.seat.memory;
        match task {
            Task::Rollout(task) => {
                let version = task.version.as_ref().map(|version| version.hash);
                let staleness = self.scenario.config.rollout.staleness_max;
                let sampler = task.group.iteration.0.saturating_sub(1 + staleness);
                let fits =
                    |policy: &Policy| policy.hash() == version && policy.iteration.0 == sampler;
                assert!(
                    memory.policies().any(|policy| fits(&policy)),
                    "group {} is to be sampled with a version that the record does not have, or with another than \
                     its iteration's (A6, A9)",
                    task.group
                );
            }
            Task::Train(task) => {
                let state = task.state.as_ref().map(|state| state.hash);
                let committed = memory.committed();
                assert_eq!(
                    state,
                    committed.state.map(|state| state.hash),
                    "a step starts from a state that is not recorded (A8)"
                );
                let writes_down = task.groups.is_empty() && task.iteration == committed.iteration;
                assert!(
                    writes_down || task.iteration == committed.iteration.next(),
                    "iteration {} is trained after {} (A8)",
                    task.iteration,
                    committed.iteration
                );
            }
            Task::Score(_) | Task::Mint(_) => {}
        }
    }

    fn exit(&mut self, outcome: Outcome) {
        if outcome.suspended {
            self.tell("coordinator", || {
                "exits; another is started in the same run folder".into()
            });
            self.seat.vacate();
            return self.after(50, Event::CoordinatorStarts);
        }
        if outcome.failure.is_some() || outcome.iteration.0 == self.scenario.config.iterations {
            self.tell("coordinator", || "exits: the run is over".into());
            self.outcome = Some(outcome);
            return;
        }
        // Drained or stopped: everything is started again with the same run folder.
        self.tell("coordinator", || {
            "exits; everything is started again in the same run folder".into()
        });
        self.seat.vacate();
        for worker in 0..self.workers.len() {
            if self.workers[worker].alive {
                self.kill(worker);
                self.after(100, Event::Starts { worker });
            }
        }
        self.after(50, Event::CoordinatorStarts);
    }

    pub(super) fn coordinator_dies(&mut self, how: &str) {
        if self.seat.machine.is_some() {
            self.tell("coordinator", || how.to_owned());
            self.seat.vacate();
            let delay_ms = self.random.within(10..2_000);
            self.after(delay_ms, Event::CoordinatorStarts);
        }
    }

    /// Somebody gives a command.
    pub(super) fn command(&mut self, command: Command) {
        let ticket = self.seat.ticket();
        self.ask(Input::Control(ticket, command));
    }

    /// Says it again until it was heard: a coordinator that is killed forgets what it has not recorded.
    pub(super) fn resume(&mut self) {
        let is_paused = |machine: &Machine| machine.state() == RunState::Paused;
        let is_heard = self
            .seat
            .machine
            .as_ref()
            .is_some_and(|machine| !is_paused(machine));
        if is_heard && self.seat.inbox.is_empty() {
            return;
        }
        self.command(Command::Resume);
        self.after(RESUME_EVERY_MS, Event::Resumes);
    }
}
