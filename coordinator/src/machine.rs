//! The coordinator's core: decides everything, touches nothing.
//!
//! A1: no async, no clock, no unseeded randomness, no generated types, no IO. Time comes in with
//! every input; [`Machine::poll`] says what to do; [`Machine::next_deadline`] says when to call
//! with [`Input::Tick`] at the latest.
//!
//! Reading order: [`io`] and [`record`] are the border; [`workers`], [`leases`], [`blobs`],
//! [`groups`] and [`prompts`] are the state; `reports` takes in what workers say, `results` what
//! they did and `attempts` what they failed to do; `collect` opens and refills iterations, `seal` finds what to train on, `training` makes them happen
//! (`mint` before, where ranks meet through NCCL) and `commit` has them happened; `recovery` handles what is lost and `leaving` who is sent away; `dispatch` gives out work and answers;
//! [`schedule`] and [`membership`] are the pure decisions; `control`, `status`, `stalls` and `alarms` are for people.

mod alarms;
mod attempts;
pub mod blobs;
mod collect;
mod commit;
mod control;
mod dispatch;
mod free;
pub mod groups;
pub mod io;
pub mod leases;
mod leaving;
pub mod membership;
mod mint;
pub mod prompts;
pub mod record;
mod recovery;
mod reports;
mod results;
pub mod schedule;
mod seal;
#[cfg(any(test, feature = "simulator"))]
pub mod simulator;
mod stalls;
mod status;
#[cfg(test)]
mod tests;
mod training;
pub mod workers;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use retouch_dataset::Row;
use retouch_proto::status::{Event, EventKind, IterationMetrics, Totals};
use retouch_proto::{ContentHash, GroupId, Iteration, LeaseId, RunConfig, WorkerId};

use self::blobs::Blobs;
use self::control::Phase;
use self::free::FreeWorkers;
use self::groups::{Group, OpenIteration};
use self::io::{Input, Output};
use self::leases::Leases;
use self::membership::Collective;
use self::mint::Minting;
use self::prompts::Prompts;
use self::record::{Checkpoint, Committed, Entry, Policy, Record};
use self::status::Throughput;
use self::training::Training;
use self::workers::Workers;

/// Committed iterations whose metrics are kept at hand.
const HISTORY_MAX: usize = 100;
/// How often stalls are looked for.
const STALL_CHECK_MS: u64 = 5_000;

/// Something that happens by itself when its time comes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Alarm {
    /// A worker's report must be answered, or the worker is lost.
    Worker(WorkerId),
    /// A lease runs out.
    Lease(LeaseId),
    /// Look at everything again.
    Look,
    /// Look for stalls.
    Stalls,
}

/// The core.
pub struct Machine {
    config: RunConfig,
    rows: Vec<Row>,
    now_ms: u64,
    started_ms: u64,
    phase: Phase,
    prompts: Prompts,
    workers: Workers,
    leases: Leases,
    blobs: Blobs,
    collective: Collective,
    committed: Committed,
    policies: Vec<Policy>,
    checkpoint: Checkpoint,
    positions: BTreeMap<Iteration, u64>,
    open: BTreeMap<Iteration, OpenIteration>,
    training: Option<Training>,
    minting: Option<Minting>,
    retry: training::Retry,
    /// A person wants a checkpoint of what is committed.
    checkpoint_asked: bool,
    shortage_since_ms: Option<u64>,
    state_lost_since_ms: Option<u64>,
    /// A blob that an open group needs may have lost its last owner.
    looks_for_lost: bool,
    /// Until then, blobs of the record that nobody has may still be reported by their holders.
    adopting_until_ms: Option<u64>,
    totals: Totals,
    history: VecDeque<IterationMetrics>,
    throughput: Throughput,
    event_sequence: u64,
    progress_ms: u64,
    stalled: BTreeSet<String>,
    ringing: alarms::Ringing,
    /// Workers whose answer may be due.
    touched: BTreeSet<WorkerId>,
    /// Workers that could take a task.
    free: FreeWorkers,
    alarms: BTreeSet<(u64, Alarm)>,
    outputs: VecDeque<Output>,
}

impl Machine {
    /// Starts from what the record says. `config` must be valid, `rows` not empty, and both the
    /// same as when the record was made.
    pub fn new(config: RunConfig, rows: Vec<Row>, record: Record, now_ms: u64) -> Self {
        let incarnation = record.incarnation;
        let mut machine = Self {
            prompts: Prompts::new(config.seed, &rows),
            workers: Workers::new(incarnation, config.cluster.heartbeat_ms),
            leases: Leases::new(incarnation),
            blobs: Blobs::default(),
            collective: Collective::new(incarnation),
            config,
            rows,
            now_ms,
            started_ms: now_ms,
            phase: Phase::Running,
            committed: record.committed,
            policies: record.policies,
            checkpoint: record.checkpoint,
            positions: record.positions.into_iter().collect(),
            open: BTreeMap::new(),
            training: None,
            minting: None,
            retry: training::Retry::default(),
            checkpoint_asked: false,
            shortage_since_ms: None,
            state_lost_since_ms: None,
            looks_for_lost: true,
            adopting_until_ms: None,
            totals: record.totals,
            history: record.history.into(),
            throughput: Throughput::default(),
            event_sequence: record.event_sequence,
            progress_ms: now_ms,
            stalled: BTreeSet::new(),
            ringing: BTreeSet::new(),
            touched: BTreeSet::new(),
            free: FreeWorkers::default(),
            alarms: BTreeSet::new(),
            outputs: VecDeque::new(),
        };
        for (row, at) in record.banned {
            machine.prompts.ban(row, at);
        }
        machine.forget_old_policies();
        machine.restore_open(record.open, record.drawn_to);
        machine
            .alarms
            .insert((now_ms + STALL_CHECK_MS, Alarm::Stalls));
        machine.step();
        machine
    }

    fn restore_open(&mut self, open: Vec<record::OpenRecord>, drawn_to: u64) {
        let restored = open
            .into_iter()
            .map(|record| OpenIteration::restored(record, self.now_ms));
        self.open = restored.map(|open| (open.iteration, open)).collect();
        let checkpointed = self.checkpoint;
        self.track_checkpoint_files(&checkpointed);
        self.track_wanted();
        if self.committed != Committed::START || !self.open.is_empty() {
            let until_ms = self.now_ms + self.config.cluster.rank_grace_s * 1000;
            self.adopting_until_ms = Some(until_ms);
            self.alarms.insert((until_ms, Alarm::Look));
        }
        // Drawing goes on after the last group that was drawn, skipped rows included.
        if let Some((last, open)) = self.open.iter().next_back() {
            let (position, drawn) = (
                self.positions.get(last).copied().unwrap_or(0),
                open.groups().len(),
            );
            let until = self.banned_until(*last);
            self.prompts.go_to(position);
            for _ in 0..drawn {
                self.prompts.draw(until);
            }
        } else if let Some(position) = self.positions.get(&self.committed.iteration.next()) {
            self.prompts.go_to(*position);
        }
        // An older iteration may have drawn replacements after a newer one was opened.
        let groups = self.open.values().flat_map(|open| open.groups());
        let positions = groups.map(|group| group.drawn.position);
        let drawn_to = positions.chain([drawn_to]).max().unwrap_or(0);
        if drawn_to > self.prompts.position() {
            self.prompts.go_to(drawn_to);
        }
    }

    /// Takes in something that happened at `now_ms` (which never goes back).
    pub fn handle(&mut self, now_ms: u64, input: Input) {
        self.now_ms = self.now_ms.max(now_ms);
        match input {
            Input::Register(ticket, registration) => self.register(ticket, registration),
            Input::Report(ticket, report) => self.report(ticket, report),
            Input::HungUp(ticket) => self.hung_up(ticket),
            Input::Control(ticket, command) => self.control(ticket, command),
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
        self.alarms.first().map(|(at_ms, _)| *at_ms)
    }

    fn step(&mut self) {
        self.ring_alarms();
        self.part();
        loop {
            self.recover();
            self.collect();
            // What a commit makes possible is done at once.
            if !self.train() {
                break;
            }
        }
        self.dispatch();
        self.answer();
        self.leave();
    }

    fn ring_alarms(&mut self) {
        while let Some((at_ms, _)) = self.alarms.first()
            && *at_ms <= self.now_ms
        {
            let (_, alarm) = self.alarms.pop_first().expect("looked at above");
            match alarm {
                Alarm::Worker(id) => {
                    if let Some(worker) = self.workers.get_mut(&id) {
                        worker.alarm_ms = None;
                    }
                    self.worker_alarm(id);
                }
                Alarm::Lease(lease) => self.lease_alarm(lease),
                Alarm::Look => {}
                Alarm::Stalls => self.look_for_stalls(),
            }
        }
    }

    /// Has everything looked at again at that time.
    fn look_at(&mut self, at_ms: u64) {
        self.alarms
            .insert((at_ms.max(self.now_ms + 1), Alarm::Look));
    }

    fn record(&mut self, entry: Entry) {
        self.outputs.push_back(Output::Record(entry));
    }

    fn event(&mut self, kind: EventKind, message: String) {
        self.event_sequence += 1;
        let event = Event {
            sequence: self.event_sequence,
            time_unix_ms: self.now_ms,
            iteration: self.committed.iteration.next(),
            kind,
            message,
        };
        self.record(Entry::Event(event.clone()));
        self.outputs.push_back(Output::Event(event));
    }

    fn progress(&mut self) {
        self.progress_ms = self.now_ms;
        self.stalled.clear();
    }

    fn group(&self, id: GroupId) -> Option<&Group> {
        self.open.get(&id.iteration)?.group(id.index)
    }

    fn group_mut(&mut self, id: GroupId) -> Option<&mut Group> {
        self.open.get_mut(&id.iteration)?.group_mut(id.index)
    }

    /// Bans of later iterations do not count for this one's draws: with stale samples allowed,
    /// it may be drawn before they are known.
    fn banned_until(&self, iteration: Iteration) -> Iteration {
        Iteration(
            iteration
                .0
                .saturating_sub(1 + self.config.rollout.staleness_max),
        )
    }

    /// The policy that samples now.
    fn policy(&self) -> Policy {
        self.committed.policy
    }

    fn wanted(&self) -> std::collections::HashSet<ContentHash> {
        let groups = self.open.values().flat_map(|open| open.groups());
        let policies = self.policies.iter().filter_map(Policy::hash);
        let states = [self.committed, self.checkpoint.committed]
            .into_iter()
            .flat_map(|committed| {
                [
                    committed.state.map(|state| state.hash),
                    committed.policy.hash(),
                ]
            });
        groups
            .flat_map(Group::blobs)
            .chain(policies)
            .chain(states.flatten())
            .collect()
    }

    fn forget_unwanted(&mut self) {
        let wanted = self.wanted();
        self.blobs.retain(&wanted);
        self.workers.retain_hints(&wanted);
    }

    fn track_wanted(&mut self) {
        for hash in self.wanted() {
            self.blobs.track(hash);
        }
    }

    fn track_checkpoint_files(&mut self, checkpoint: &Checkpoint) {
        for (hash, path) in checkpoint.files() {
            self.blobs.add_file(hash, path);
        }
    }
}
