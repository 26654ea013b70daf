//! The virtual world: a clock, a queue of what happens next, processes that come and go, a disk.

use std::collections::{BTreeMap, BTreeSet, BinaryHeap, HashMap};

use retouch_proto::status::RunStatus;
use retouch_proto::worker::Role;
use retouch_proto::{ContentHash, Epoch, LeaseId};

use super::events::{Event, Planned};
use super::fakes::Fake;
use super::faults::Strike;
#[cfg(test)]
use super::memory::Memory;
use super::network::Network;
use super::random::Random;
use super::scenario::Scenario;
use super::seat::Seat;
use super::story::Story;
use super::tally::Tally;
use crate::machine::io::Outcome;
#[cfg(test)]
use crate::machine::record::Entry;

/// When the world begins; far from zero, so that clocks can be behind.
pub(super) const START_MS: u64 = 1_000_000_000;
/// A run must be over so long after the last fault (liveness).
const LIVENESS_MS: u64 = 15 * 60_000;
/// Fakes report this often while they are busy.
pub(super) const HEARTBEAT_MS: u64 = 700;
/// Fakes give up waiting for an answer.
pub(super) const ANSWER_MS_MAX: u64 = 4_000;

/// Until when a worker is not itself.
#[derive(Clone, Copy, Default)]
pub(super) struct Condition {
    pub(super) stopped_until_ms: u64,
    pub(super) slow_until_ms: u64,
    pub(super) hangs_until_ms: u64,
    /// It is not there and does not come back by itself.
    pub(super) away: bool,
}

/// A simulated run.
pub(super) struct World {
    pub(super) scenario: Scenario,
    pub(super) random: Random,
    pub(super) now_ms: u64,
    order: u64,
    queue: BinaryHeap<Planned>,
    pub(super) seat: Seat,
    pub(super) network: Network,
    pub(super) workers: Vec<Fake>,
    pub(super) conditions: Vec<Condition>,
    /// Ranks that have begun an epoch's step.
    pub(super) barriers: BTreeMap<Epoch, BTreeSet<(usize, LeaseId)>>,
    pub(super) disk: HashMap<String, ContentHash>,
    pub(super) disk_full_until_ms: u64,
    /// The next learner that begins a step vanishes in it.
    pub(super) learner_is_doomed: bool,
    pub(super) strikes_left: Vec<u64>,
    pub(super) outcome: Option<Outcome>,
    #[cfg(test)]
    pub(super) recorded: Vec<Entry>,
    pub(super) story: Story,
    pub(super) tally: Tally,
}

/// How a simulated run ended.
pub(super) struct Ended {
    pub(super) outcome: Outcome,
    pub(super) tally: Tally,
    /// Reasons of groups that were given up, in the iterations that count.
    pub(super) dropped: Vec<(u32, String)>,
    #[cfg(test)]
    pub(super) recorded: Vec<Entry>,
    #[cfg(test)]
    pub(super) memory: Memory,
}

impl World {
    pub(super) fn new(scenario: Scenario) -> Self {
        let cast = scenario.cast;
        let slots = |role| if role == Role::Learner { 1 } else { 2 };
        let fakes = [
            (Role::Rollout, cast.rollout),
            (Role::Reward, cast.reward),
            (Role::Learner, cast.learner),
        ];
        let fakes = fakes
            .into_iter()
            .flat_map(|(role, count)| (0..count).map(move |n| (role, n)));
        let workers: Vec<Fake> = fakes
            .map(|(role, n)| Fake::new(role, n, slots(role)))
            .collect();
        let mut strikes_left: Vec<u64> = scenario
            .faults
            .strikes_ms
            .iter()
            .map(|at_ms| START_MS + at_ms)
            .collect();
        strikes_left.reverse();
        let mut world = Self {
            random: Random::new(scenario.seed ^ 0x7261_6e64),
            now_ms: START_MS,
            order: 0,
            queue: BinaryHeap::new(),
            seat: Seat::new(),
            network: Network::new(workers.len()),
            conditions: vec![Condition::default(); workers.len()],
            workers,
            barriers: BTreeMap::new(),
            disk: HashMap::new(),
            disk_full_until_ms: 0,
            learner_is_doomed: false,
            strikes_left,
            outcome: None,
            #[cfg(test)]
            recorded: Vec::new(),
            story: Story::default(),
            tally: Tally::default(),
            scenario,
        };
        world.begin();
        world
    }

    /// Has what happens told.
    pub(super) fn told_to(mut self, story: Story) -> Self {
        self.story = story;
        self
    }

    fn begin(&mut self) {
        self.workers[0].odd_device = self.scenario.faults.other_devices;
        self.after(0, Event::CoordinatorStarts);
        // Rollout workers come first in the list, and the late ones are the last of them.
        let rollout = self.scenario.cast.rollout;
        let late = self.scenario.cast.late.min(rollout - 1);
        for worker in 0..self.workers.len() {
            if (rollout - late..rollout).contains(&worker) {
                self.conditions[worker].away = true;
                continue;
            }
            let delay_ms = self.random.within(0..200);
            self.after(delay_ms, Event::Starts { worker });
        }
        self.plan_strike();
    }

    pub(super) fn plan_strike(&mut self) {
        if let Some(at_ms) = self.strikes_left.pop() {
            self.after(at_ms.saturating_sub(self.now_ms), Event::Strikes);
        }
    }

    pub(super) fn after(&mut self, delay_ms: u64, event: Event) {
        self.order += 1;
        self.queue.push(Planned {
            at_ms: self.now_ms + delay_ms,
            order: self.order,
            event,
        });
    }

    /// Runs to the end.
    pub(super) fn run(mut self) -> Ended {
        let end_ms = START_MS + self.scenario.faults.until_ms + LIVENESS_MS;
        while self.outcome.is_none() {
            let Planned { at_ms, event, .. } = self.queue.pop().expect("something always happens");
            self.now_ms = self.now_ms.max(at_ms);
            assert!(
                self.now_ms < end_ms,
                "liveness: faults stopped {} s ago and the run does not end: {}",
                LIVENESS_MS / 1000,
                self.stuck()
            );
            self.happen(event);
            self.tally.steps += 1;
        }
        self.ended()
    }

    fn ended(mut self) -> Ended {
        let outcome = self.outcome.take().expect("the run is over");
        self.tally.runs += 1;
        self.tally.writes += self.seat.writes;
        self.tally.virtual_ms += self.now_ms - START_MS;
        let check = self.seat.check;
        check.count(&mut self.tally);
        Ended {
            outcome,
            dropped: check.dropped(),
            tally: self.tally,
            #[cfg(test)]
            recorded: self.recorded,
            #[cfg(test)]
            memory: self.seat.memory,
        }
    }

    fn stuck(&self) -> String {
        let status = |machine: &crate::machine::Machine| machine.status(self.clock_ms());
        let status: Option<RunStatus> = self.seat.machine.as_ref().map(status);
        format!("{status:#?}")
    }

    pub(super) fn is_faulty(&self) -> bool {
        self.now_ms < START_MS + self.scenario.faults.until_ms
    }

    /// Whether something goes wrong now that goes wrong with this probability.
    pub(super) fn fault(&mut self, probability: f64) -> bool {
        self.is_faulty() && self.random.chance(probability)
    }

    pub(super) fn tell(&self, who: &str, what: impl FnOnce() -> String) {
        self.story.tell(self.now_ms - START_MS, who, what);
    }

    /// Counts and tells a strike.
    pub(super) fn struck(&mut self, strike: Strike, who: &str, what: impl FnOnce() -> String) {
        self.tally.strikes[strike as usize] += 1;
        self.tell(who, || format!("*** {}", what()));
    }

    fn happen(&mut self, event: Event) {
        if let Some(until_ms) = self.stopped_until_ms(&event) {
            return self.after(until_ms - self.now_ms, event);
        }
        match event {
            Event::Arrives(message) => self.arrive(*message),
            Event::Shell => self.shell(),
            Event::Answered {
                worker,
                life,
                answer,
            } => self.answered(worker, life, *answer),
            Event::ReportDue {
                worker,
                life,
                sequence,
            } => self.report_due(worker, life, sequence),
            Event::AnswerOverdue {
                worker,
                life,
                sequence,
            } => self.answer_overdue(worker, life, sequence),
            Event::TaskEnds {
                worker,
                life,
                lease,
            } => self.task_ends(worker, life, lease),
            Event::TaskBreaks {
                worker,
                life,
                lease,
            } => self.task_breaks(worker, life, lease),
            Event::Starts { worker } => self.start_worker(worker),
            Event::Deadline => self.deadline(),
            Event::CoordinatorStarts => self.start_coordinator(),
            Event::Resumes => self.resume(),
            Event::Strikes => self.strike(),
        }
    }

    /// A stopped process does nothing; what was to happen in it happens when it goes on.
    fn stopped_until_ms(&self, event: &Event) -> Option<u64> {
        let until_ms = match event {
            Event::Shell | Event::Deadline => self.seat.stopped_until_ms,
            other => self.conditions[other.worker()?].stopped_until_ms,
        };
        (until_ms > self.now_ms).then_some(until_ms)
    }
}
