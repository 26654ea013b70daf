//! The coordinator's core: decides everything, touches nothing.
//!
//! A1: no async, no clock, no unseeded randomness, no generated types, no IO. Time comes in with
//! every input; [`Machine::poll`] says what to do; [`Machine::next_deadline`] says when to call
//! with [`Input::Tick`] at the latest.
//!
//! To read it, begin with [`io`] and [`record`], its border, and with `Machine::step`, its heart. Then the files fall
//! into two kinds:
//!
//! * State, each part behind its own methods. `phase`, `progress` and `timers` say where the run is; `prompts`, `groups`
//!   and `open` hold what is collected; `workers` (with `free`), `leases` and `blobs` know who does and holds what;
//!   `learning` (with `membership`) is the training step under way, and `telemetry` is for people. None of them knows
//!   [`Machine`].
//! * Decisions, `impl Machine` and nothing else. An iteration goes through `collect`, `seal`, `training` (and `mint`) and
//!   `commit`; `dispatch` gives out work as `schedule` says, with `tasks` and `granting`; `reports`, `results` and
//!   `attempts` take in what workers say; `recovery` replaces what is lost. `control`, `leaving` and `ending` do what
//!   people want; `status`, `stalls` and `alarms` show them the run.

mod alarms;
mod attempts;
mod blobs;
mod collect;
mod commit;
mod control;
mod dispatch;
mod ending;
mod free;
mod granting;
mod groups;
pub mod io;
mod learning;
mod leases;
mod leaving;
mod membership;
mod mint;
mod open;
mod phase;
mod progress;
mod prompts;
pub mod record;
mod recovery;
mod reports;
mod results;
mod schedule;
mod seal;
#[cfg(any(test, feature = "simulator"))]
pub mod simulator;
mod stalls;
mod status;
mod tasks;
mod telemetry;
#[cfg(test)]
mod tests;
mod timers;
mod training;
mod workers;

use std::collections::VecDeque;

use retouch_dataset::Row;
use retouch_proto::RunConfig;
use retouch_proto::status::EventKind;

use self::blobs::Blobs;
pub use self::collect::NOTHING_LEFT;
use self::io::{Input, Output};
use self::learning::{Learning, Trained};
use self::leases::Leases;
use self::open::OpenIterations;
use self::phase::Phase;
use self::progress::Progress;
use self::prompts::Prompts;
use self::record::{Committed, Entry, Record, Standing};
use self::telemetry::Telemetry;
use self::timers::{Timer, Timers};
use self::workers::Workers;

/// The core.
pub struct Machine {
    config: RunConfig,
    /// The present moment, and what becomes due by itself.
    timers: Timers,
    /// Where the run is in its life, which decides whether there is work at all.
    phase: Phase,
    /// What is committed and what is durable: everything else can be made again from it.
    progress: Progress,
    /// The dataset, and which of its rows comes next.
    prompts: Prompts,
    /// Iterations that are being collected and trained.
    open: OpenIterations,
    /// Who holds the blobs that any of this needs.
    blobs: Blobs,
    /// Who is there, and who waits for an answer.
    workers: Workers,
    /// Who works on what, and until when.
    leases: Leases,
    /// The learners' step, and what failed on the way to it.
    learning: Learning,
    /// What people see; it decides nothing that is done.
    telemetry: Telemetry,
    /// What to do, in order, until the shell polls it.
    outputs: VecDeque<Output>,
}

impl Machine {
    /// Starts from what the record says. `config` must be valid, `rows` not empty, and both the
    /// same as when the record was made.
    pub fn new(config: RunConfig, rows: Vec<Row>, record: Record, now_ms: u64) -> Self {
        let staleness_max = config.rollout.staleness_max;
        let mut machine = Self {
            timers: Timers::new(now_ms),
            phase: Phase::restored(&record.standing, now_ms + config.cluster.lease_s * 1000),
            progress: Progress::restored(&record, staleness_max),
            prompts: Prompts::new(config.seed, staleness_max, rows),
            open: OpenIterations::default(),
            blobs: Blobs::default(),
            workers: Workers::new(record.incarnation, config.cluster.heartbeat_ms),
            leases: Leases::new(record.incarnation),
            learning: Learning::new(record.incarnation),
            telemetry: Telemetry::restored(&record, now_ms),
            outputs: VecDeque::new(),
            config,
        };
        machine.take_up(record);
        machine.watch_for_stalls();
        machine.step();
        machine
    }

    /// Takes up what the record says, and the run again if it had ended.
    fn take_up(&mut self, record: Record) {
        let standing = record.standing.clone();
        self.restore(record);
        match standing {
            Standing::Stopped => self.go_on("after it was stopped"),
            Standing::Failed { .. } => {
                self.go_on("after it had failed");
                self.abandon_open_work();
            }
            Standing::Stopping { .. } => self.timers.look_at(self.lease_deadline_ms()),
            Standing::Running | Standing::Paused | Standing::Draining { .. } => {}
        }
    }

    /// Whatever failed may have been mended since: what was open is drawn and sampled anew.
    fn abandon_open_work(&mut self) {
        let committed = self.progress.committed().iteration;
        self.open.clear();
        self.prompts.rewind(committed);
        self.record(Entry::Rewound {
            from: committed,
            to: committed,
        });
    }

    fn go_on(&mut self, from: &str) {
        let committed = self.progress.committed().iteration;
        self.record(Entry::Stands(Standing::Running));
        self.event(
            EventKind::Control,
            format!("the run goes on {from}, with iteration {committed} as the last one done"),
        );
    }

    fn restore(&mut self, mut record: Record) {
        let open = std::mem::take(&mut record.open);
        self.open = OpenIterations::restored(open, self.timers.now_ms());
        self.prompts.restore(&record, &self.open);
        self.track_wanted();
        self.blobs.suspect_loss();
        // Workers outlive a coordinator: what they hold and run is known once they have registered again. A run that
        // has not begun has nothing to wait for.
        if record.committed != Committed::START || self.open.last().is_some() {
            let until_ms = self.timers.now_ms() + self.config.cluster.rank_grace_s * 1000;
            self.blobs.await_holders(until_ms);
            self.timers.set(until_ms, Timer::Look);
        }
    }

    /// Takes in something that happened at `now_ms` (which never goes back).
    pub fn handle(&mut self, now_ms: u64, input: Input) {
        self.timers.advance(now_ms);
        match input {
            Input::Register(ticket, registration) => self.register(ticket, registration),
            Input::Report(ticket, report) => self.report(ticket, report),
            Input::HungUp(ticket) => self.hung_up(ticket),
            Input::Control(ticket, command) => self.control(ticket, command),
            Input::Suspend => self.suspend(),
            Input::Tick => {}
        }
        self.step();
    }

    /// The next thing to do, until there is none.
    pub fn poll(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When [`Input::Tick`] is due.
    pub fn next_deadline(&self) -> Option<u64> {
        self.timers.next_ms()
    }

    /// After every input: everything is looked at, and whatever can be done is done. No input has to say what follows
    /// from it, so none can forget it.
    fn step(&mut self) {
        self.ring_timers();
        // Before work is looked for, so that none goes to those who leave.
        self.let_go();
        loop {
            self.recover();
            self.collect();
            // What a commit makes possible is done at once: the next iteration opens, and may be empty too.
            if self.train() == Trained::Nothing {
                break;
            }
        }
        self.dispatch();
        self.answer();
        self.exit_if_over();
    }

    fn ring_timers(&mut self) {
        while let Some(timer) = self.timers.take_due() {
            match timer {
                Timer::Worker(id) => self.worker_timer(id),
                Timer::Lease(lease) => self.lease_timer(lease),
                Timer::Look => {}
                Timer::Stalls => self.look_for_stalls(),
            }
        }
    }

    fn record(&mut self, entry: Entry) {
        self.outputs.push_back(Output::Record(entry));
    }

    fn event(&mut self, kind: EventKind, message: String) {
        let (now_ms, iteration) = (self.timers.now_ms(), self.progress.next());
        let event = self.telemetry.event(now_ms, iteration, kind, message);
        self.record(Entry::Event(event.clone()));
        self.outputs.push_back(Output::Event(event));
    }

    /// Something moved, so the run is not stalled.
    fn moved(&mut self) {
        self.telemetry.moved(self.timers.now_ms());
    }
}
