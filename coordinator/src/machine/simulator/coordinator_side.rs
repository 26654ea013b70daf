//! The coordinator of the virtual world: machine, record and what people do.

use super::checks;
use super::world::{Answer, Caller, Event, World};
use crate::machine::Machine;
use crate::machine::io::{Command, Input, Outcome, Output, Ticket};
use crate::machine::record::Entry;
use retouch_proto::WorkerId;

impl World {
    pub(super) fn start_coordinator(&mut self) {
        if self.machine.is_some() {
            return;
        }
        self.coordinator_starts += 1;
        let record = self.memory.load();
        let machine = Machine::new(self.config.clone(), self.rows.clone(), record, self.now_ms);
        self.machine = Some(machine);
        self.let_out();
    }

    pub(super) fn handle(&mut self, input: Input) {
        let Some(machine) = &mut self.machine else {
            return;
        };
        machine.handle(self.now_ms, input);
        self.let_out();
    }

    /// What the shell does: first the record, then everything else. It may die in between.
    pub(super) fn let_out(&mut self) {
        let Some(machine) = &mut self.machine else {
            return;
        };
        let outputs: Vec<Output> = std::iter::from_fn(|| machine.poll()).collect();
        checks::machine(machine);
        let deadline_ms = machine.next_deadline().expect("checked above");
        if self.faults.coordinator_crash_ms > 0 && self.fault(0.002) {
            return self.coordinator_dies();
        }
        for output in &outputs {
            if let Output::Record(entry) = output {
                self.write(entry);
            }
        }
        if self.faults.coordinator_crash_ms > 0 && self.fault(0.002) {
            return self.coordinator_dies();
        }
        self.after(deadline_ms - self.now_ms, Event::Deadline);
        outputs.into_iter().for_each(|output| self.output(output));
        let now_ms = self.now_ms;
        let patience_ms = self.config.cluster.report_wait_ms_max;
        let waits = |caller: &Caller| now_ms - caller.asked_ms > patience_ms;
        assert!(
            !self.callers.values().any(waits),
            "a report was held for too long (A7)"
        );
    }

    pub(super) fn write(&mut self, entry: &Entry) {
        let faults = &self.faults;
        let repeatable =
            !faults.other_devices && faults.task_fails == 0.0 && faults.task_hangs == 0.0;
        let staleness_max = self.config.rollout.staleness_max;
        self.check
            .entry(entry, staleness_max, repeatable && staleness_max == 0);
        self.memory.write(entry);
        if self.keep_entries {
            self.recorded.push(entry.clone());
        }
    }

    pub(super) fn output(&mut self, output: Output) {
        match output {
            Output::Record(_) | Output::Event(_) | Output::Controlled(..) => {}
            Output::Registered(ticket, generation) => {
                self.deliver(ticket, |_| Answer::Registered(generation));
            }
            Output::Reply(ticket, reply) => {
                self.deliver(ticket, |sequence| Answer::Reply {
                    sequence,
                    reply: reply.clone(),
                });
            }
            Output::Exit(outcome) => self.exit(outcome),
        }
    }

    pub(super) fn deliver(&mut self, ticket: Ticket, answer: impl Fn(u64) -> Answer) {
        let caller = self
            .callers
            .remove(&ticket)
            .expect("every ticket is answered once");
        let Caller {
            worker,
            life,
            sequence,
            ..
        } = caller;
        self.send(|| Event::Answered {
            worker,
            life,
            answer: answer(sequence),
        });
    }

    pub(super) fn exit(&mut self, outcome: Outcome) {
        if outcome.failure.is_some() || outcome.iteration.0 == self.config.iterations {
            self.outcome = Some(outcome);
            return;
        }
        // Drained or stopped: everything is started again with the same run folder.
        self.machine = None;
        self.callers.clear();
        for worker in 0..self.workers.len() {
            self.kill(worker);
            self.after(100, Event::Starts { worker });
        }
        self.after(50, Event::CoordinatorStarts);
    }

    pub(super) fn deadline(&mut self) {
        let due = self
            .machine
            .as_ref()
            .and_then(|machine| machine.next_deadline());
        if due.is_some_and(|due_ms| due_ms <= self.now_ms) {
            self.handle(Input::Tick);
        }
    }

    pub(super) fn coordinator_crash(&mut self) {
        self.coordinator_dies();
        self.again(self.faults.coordinator_crash_ms, Event::CoordinatorCrash);
    }

    pub(super) fn coordinator_dies(&mut self) {
        if self.machine.take().is_some() {
            self.callers.clear();
            let delay_ms = self.random.within(10..3_000);
            self.after(delay_ms, Event::CoordinatorStarts);
        }
    }

    pub(super) fn person(&mut self) {
        match self.random.within(0..10) {
            0 => self.command(Command::Drain),
            1 => self.command(Command::Stop),
            2 => self.command(Command::Checkpoint),
            3 => {
                let worker = self.somebody();
                self.command(Command::DrainWorker(worker));
            }
            4 => {
                let worker = self.somebody();
                self.command(Command::RestartWorker(worker));
            }
            _ => {
                self.command(Command::Pause);
                self.after(700, Event::Resumes);
            }
        }
        self.again(self.faults.command_ms, Event::Person);
    }

    fn somebody(&mut self) -> WorkerId {
        let worker = self.random.within(0..self.workers.len() as u64) as usize;
        self.workers[worker].id.clone()
    }

    pub(super) fn command(&mut self, command: Command) {
        let ticket = self.ticket();
        self.handle(Input::Control(ticket, command));
    }

    pub(super) fn ticket(&mut self) -> Ticket {
        self.next_ticket += 1;
        Ticket(self.next_ticket)
    }
}
