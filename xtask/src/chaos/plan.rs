//! What is done to a run, and when: a pure function of its seed.

use std::{collections::BTreeMap, fmt};

use super::random::Random;

/// When steps may be, in thousandths of the time that an undisturbed run takes: faults make runs longer.
const AT_MAX_PERMILLE: u64 = 1_300;
const STEPS: (u64, u64) = (5, 10);
/// `launch` gives up on a process that dies more than five times within half an hour.
const DEATHS_MAX: usize = 4;
/// A worker is lost after three silent heartbeats of a second: some stops are shorter, some longer.
const STOP_MS: (u64, u64) = (200, 4_500);
const PAUSE_MS: (u64, u64) = (100, 2_000);
const FULL_MS: (u64, u64) = (500, 5_000);
/// How soon the coordinator is killed after it has answered an order.
const KILL_MS: (u64, u64) = (0, 300);
/// Clocks that were set to another zone, or that are days or weeks off.
const OFFSETS_S: [i64; 6] = [
    -40 * DAY_S,
    -11 * HOUR_S,
    -60,
    HOUR_S,
    3 * DAY_S,
    200 * DAY_S,
];
const HOUR_S: i64 = 3_600;
const DAY_S: i64 = 24 * HOUR_S;

/// A process of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Victim {
    Coordinator,
    RolloutWorker(u64),
    RewardWorker(u64),
    Learner(u64),
    /// It starts all others, and they end with it.
    Launch,
    /// `launch` and all that it started, as a cluster's signal or a power cut reaches them.
    Everyone,
}

/// How a process is made to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Signal {
    Kill,
    Term,
    Hup,
    Int,
}

/// A command for the run's coordinator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    Stop,
    Drain,
    /// And `resume` later.
    Pause {
        ms: u64,
    },
    DrainWorker(Victim),
    RestartWorker(Victim),
    Checkpoint,
}

/// One thing that is done to a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Whoever started it starts it again.
    Signal(Signal, Victim),
    /// SIGSTOP, and SIGCONT later.
    Stop { victim: Victim, ms: u64 },
    /// An order; if it is answered, the coordinator may be killed so soon after that only what it wrote down counts.
    Order { order: Order, kill_ms: Option<u64> },
    /// The disk of the run folder is full for a while.
    FullDisk { ms: u64 },
    /// A wall clock is off: it jumps, or is so when the process starts again (which it does by being killed).
    Clock {
        victim: Victim,
        offset_s: i64,
        restart: bool,
    },
}

/// What faults are counted and chosen by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    Kill,
    Stop,
    Term,
    Hup,
    Int,
    Order,
    Disk,
    Clock,
}

/// A fault and its moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Step {
    /// In thousandths of the time that an undisturbed run takes, so that slow machines meet the same story.
    pub(crate) at_permille: u64,
    pub(crate) fault: Fault,
}

/// A run and what is done to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Plan {
    /// The kinds of faults that it was made of.
    pub(crate) kinds: Vec<Kind>,
    pub(crate) ranks: u64,
    pub(crate) rollout_workers: u64,
    pub(crate) checkpoint_every: u64,
    pub(crate) steps: Vec<Step>,
}

impl Plan {
    /// Nothing is done to this one.
    pub(crate) fn undisturbed(ranks: u64) -> Self {
        Self {
            kinds: Vec::new(),
            ranks,
            rollout_workers: 2,
            checkpoint_every: 1,
            steps: Vec::new(),
        }
    }

    /// The plan of a seed, with faults of these kinds.
    pub(crate) fn new(seed: u64, kinds: &[Kind]) -> Self {
        // The sequences of neighbouring states are shifted copies of each other, those of their outputs are not.
        let mut random = Random::new(Random::new(seed).next());
        let mut plan = Self {
            kinds: kinds.to_vec(),
            ranks: random.between(1, 2),
            rollout_workers: random.between(1, 2),
            checkpoint_every: random.between(1, 3),
            steps: Vec::new(),
        };
        let mut draw = Draw {
            ranks: plan.ranks,
            rollout_workers: plan.rollout_workers,
            deaths: BTreeMap::new(),
            once: Vec::new(),
            random,
        };
        let count = draw.random.between(STEPS.0, STEPS.1);
        let faults = (0..count).filter_map(|_| draw.fault(kinds)).collect();
        plan.steps = draw.at_moments(faults);
        plan
    }
}

/// Draws the faults of one plan.
struct Draw {
    ranks: u64,
    rollout_workers: u64,
    deaths: BTreeMap<Victim, usize>,
    /// Kinds of orders and faults that are not given twice.
    once: Vec<&'static str>,
    random: Random,
}

impl Draw {
    /// None if it would be one too many of its kind.
    fn fault(&mut self, kinds: &[Kind]) -> Option<Fault> {
        let weighted = kinds.iter().flat_map(|kind| vec![*kind; kind.weight()]);
        let kind = *self.random.pick(&weighted.collect::<Vec<_>>());
        match kind {
            Kind::Kill => self.signal(Signal::Kill),
            Kind::Term => self.signal(Signal::Term),
            Kind::Hup => self.signal(Signal::Hup),
            Kind::Int => self.signal(Signal::Int),
            Kind::Stop => {
                let victim = self.victim();
                let ms = self.random.between(STOP_MS.0, STOP_MS.1);
                Some(Fault::Stop { victim, ms })
            }
            Kind::Order => self.order(),
            Kind::Disk => {
                let ms = self.random.between(FULL_MS.0, FULL_MS.1);
                self.once("disk").then_some(Fault::FullDisk { ms })
            }
            Kind::Clock => self.clock(),
        }
    }

    fn at_moments(&mut self, faults: Vec<Fault>) -> Vec<Step> {
        let moment = |_| self.random.between(0, AT_MAX_PERMILLE);
        let mut moments: Vec<u64> = faults.iter().map(moment).collect();
        moments.sort_unstable();
        let steps = moments.into_iter().zip(faults);
        let step = |(at_permille, fault)| Step { at_permille, fault };
        steps.map(step).collect()
    }

    fn signal(&mut self, signal: Signal) -> Option<Fault> {
        let victim = match signal {
            Signal::Kill | Signal::Term => self.victim(),
            // What a terminal sends, which the others don't have.
            Signal::Hup | Signal::Int => *self.random.pick(&[Victim::Launch, Victim::Everyone]),
        };
        self.dies(victim).then_some(Fault::Signal(signal, victim))
    }

    fn order(&mut self) -> Option<Fault> {
        let order = match self.random.between(0, 6) {
            0 if self.once("stop") => Order::Stop,
            1 if self.once("drain") => Order::Drain,
            2 => Order::Pause {
                ms: self.random.between(PAUSE_MS.0, PAUSE_MS.1),
            },
            3 => Order::DrainWorker(self.spare_worker()?),
            4 | 5 => {
                let victim = self.worker();
                self.dies(victim).then_some(Order::RestartWorker(victim))?
            }
            _ => Order::Checkpoint,
        };
        let is_standing = matches!(order, Order::Stop | Order::Drain | Order::Pause { .. });
        let is_killed = is_standing && self.random.between(0, 1) == 0;
        let kill_ms = (is_killed && self.dies(Victim::Coordinator))
            .then(|| self.random.between(KILL_MS.0, KILL_MS.1));
        Some(Fault::Order { order, kill_ms })
    }

    /// A worker without which the run can go on: drained ones are not started again.
    fn spare_worker(&mut self) -> Option<Victim> {
        let rollout = (self.rollout_workers > 1).then_some(Victim::RolloutWorker(1));
        let learner = (self.ranks > 1).then_some(Victim::Learner(1));
        let spare: Vec<Victim> = [rollout, learner].into_iter().flatten().collect();
        let victim = (!spare.is_empty()).then(|| *self.random.pick(&spare))?;
        self.once("drain worker").then_some(victim)
    }

    fn clock(&mut self) -> Option<Fault> {
        let victim = match self.random.between(0, 3) {
            0 => Victim::Coordinator,
            1 => Victim::Launch,
            _ => self.worker(),
        };
        let restart = self.random.between(0, 1) == 0 && self.dies(victim);
        let offset_s = *self.random.pick(&OFFSETS_S);
        Some(Fault::Clock {
            victim,
            offset_s,
            restart,
        })
    }

    fn victim(&mut self) -> Victim {
        match self.random.between(0, 7) {
            0 | 1 => Victim::Coordinator,
            2 => Victim::Launch,
            3 => Victim::Everyone,
            _ => self.worker(),
        }
    }

    fn worker(&mut self) -> Victim {
        let rollout = (0..self.rollout_workers).map(Victim::RolloutWorker);
        let learners = (0..self.ranks).map(Victim::Learner);
        let workers = rollout.chain(learners).chain([Victim::RewardWorker(0)]);
        *self.random.pick(&workers.collect::<Vec<_>>())
    }

    /// Whether it may be done, which it then counts as.
    fn once(&mut self, what: &'static str) -> bool {
        let is_first = !self.once.contains(&what);
        self.once.push(what);
        is_first
    }

    /// Whether the victim may die once more, which it then counts as.
    fn dies(&mut self, victim: Victim) -> bool {
        let deaths = self.deaths.entry(victim).or_default();
        *deaths += 1;
        *deaths <= DEATHS_MAX
    }
}

impl Kind {
    pub(crate) const ALL: [Self; 8] = [
        Self::Kill,
        Self::Stop,
        Self::Term,
        Self::Hup,
        Self::Int,
        Self::Order,
        Self::Disk,
        Self::Clock,
    ];

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Kill => "kill",
            Self::Stop => "stop",
            Self::Term => "term",
            Self::Hup => "hup",
            Self::Int => "int",
            Self::Order => "order",
            Self::Disk => "disk",
            Self::Clock => "clock",
        }
    }

    /// How often it is drawn, beside the others.
    fn weight(self) -> usize {
        match self {
            Self::Order => 4,
            Self::Kill | Self::Stop => 3,
            Self::Term => 2,
            Self::Hup | Self::Int | Self::Disk | Self::Clock => 1,
        }
    }

    pub(crate) fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == name)
    }
}

impl Fault {
    pub(crate) fn kind(self) -> Kind {
        match self {
            Self::Signal(Signal::Kill, _) => Kind::Kill,
            Self::Signal(Signal::Term, _) => Kind::Term,
            Self::Signal(Signal::Hup, _) => Kind::Hup,
            Self::Signal(Signal::Int, _) => Kind::Int,
            Self::Stop { .. } => Kind::Stop,
            Self::Order { .. } => Kind::Order,
            Self::FullDisk { .. } => Kind::Disk,
            Self::Clock { .. } => Kind::Clock,
        }
    }
}

impl Signal {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Kill => "SIGKILL",
            Self::Term => "SIGTERM",
            Self::Hup => "SIGHUP",
            Self::Int => "SIGINT",
        }
    }
}

impl fmt::Display for Victim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Coordinator => f.write_str("coordinator"),
            Self::RolloutWorker(index) => write!(f, "rollout-worker-{index}"),
            Self::RewardWorker(index) => write!(f, "reward-worker-{index}"),
            Self::Learner(index) => write!(f, "learner-{index}"),
            Self::Launch => f.write_str("launch"),
            Self::Everyone => f.write_str("everyone"),
        }
    }
}

impl fmt::Display for Order {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stop => f.write_str("stop"),
            Self::Drain => f.write_str("drain"),
            Self::Pause { ms } => write!(f, "pause for {ms} ms"),
            Self::DrainWorker(worker) => write!(f, "drain {worker}"),
            Self::RestartWorker(worker) => write!(f, "restart {worker}"),
            Self::Checkpoint => f.write_str("checkpoint"),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Signal(signal, victim) => write!(f, "{} to {victim}", signal.as_str()),
            Self::Stop { victim, ms } => write!(f, "{victim} is stopped for {ms} ms"),
            Self::Order { order, kill_ms } => {
                write!(f, "order: {order}")?;
                let Some(ms) = kill_ms else { return Ok(()) };
                write!(f, "; coordinator killed {ms} ms after its answer")
            }
            Self::FullDisk { ms } => write!(f, "the disk is full for {ms} ms"),
            Self::Clock {
                victim,
                offset_s,
                restart,
            } => {
                write!(f, "{victim}'s clock is off by {offset_s} s")?;
                f.write_str(if *restart { " at its next start" } else { "" })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plans(seeds: u64) -> Vec<Plan> {
        let plan = |seed| Plan::new(seed, &Kind::ALL);
        (0..seeds).map(plan).collect()
    }

    #[test]
    fn a_seed_always_gives_the_same_plan_and_another_seed_another() {
        assert_eq!(plans(100), plans(100));
        let plans = plans(100);
        for (index, plan) in plans.iter().enumerate() {
            assert!(!plans[..index].contains(plan), "{index}: {plan:?}");
        }
    }

    #[test]
    fn every_kind_order_and_victim_comes_up_in_a_hundred_seeds() {
        let plans = plans(100);
        let shown: Vec<(Kind, String)> = plans
            .iter()
            .flat_map(|plan| &plan.steps)
            .map(|step| (step.fault.kind(), step.fault.to_string()))
            .collect();
        let has = |kind: Kind, text: &str| {
            assert!(
                shown.iter().any(|(k, t)| *k == kind && t.contains(text)),
                "{kind:?} {text:?}"
            );
        };
        let workers = [
            "rollout-worker-0",
            "rollout-worker-1",
            "reward-worker-0",
            "learner-0",
            "learner-1",
        ];
        let all = [&workers[..], &["coordinator", "launch", "everyone"]].concat();
        for kind in [Kind::Kill, Kind::Stop, Kind::Term] {
            all.iter().for_each(|victim| has(kind, victim));
        }
        for kind in [Kind::Hup, Kind::Int] {
            ["launch", "everyone"].iter().for_each(|v| has(kind, v));
        }
        for victim in &all[..7] {
            has(Kind::Clock, victim);
        }
        for victim in workers {
            has(Kind::Order, &format!("restart {victim}"));
        }
        for order in ["stop", "drain", "pause"] {
            has(Kind::Order, &format!("order: {order}"));
            let killed = |t: &str| t.contains(order) && t.contains("coordinator killed");
            assert!(shown.iter().any(|(_, text)| killed(text)), "{order}");
        }
        for text in [
            "drain rollout-worker-1",
            "drain learner-1",
            "order: checkpoint",
        ] {
            has(Kind::Order, text);
        }
        has(Kind::Clock, "next start");
        has(Kind::Disk, "full");
    }

    #[test]
    fn plans_keep_to_what_a_run_must_survive() {
        for plan in plans(1_000) {
            let steps = &plan.steps;
            assert!(steps.is_sorted_by_key(|step| step.at_permille), "{plan:?}");
            let disks = steps.iter().filter(|s| s.fault.kind() == Kind::Disk);
            assert!(disks.count() <= 1, "{plan:?}");
            let text = format!("{steps:?}");
            assert!(
                plan.ranks == 2 || !text.contains("Learner(1)"),
                "no such process: {plan:?}"
            );
            let drained = steps.iter().filter(|step| {
                let order = |order| matches!(order, Order::DrainWorker(_));
                matches!(step.fault, Fault::Order { order: o, .. } if order(o))
            });
            assert!(drained.count() <= 1, "{plan:?}");
        }
    }

    #[test]
    fn only_the_kinds_that_are_wanted_are_planned() {
        for seed in 0..100 {
            let plan = Plan::new(seed, &[Kind::Kill, Kind::Stop]);
            let kinds = plan.steps.iter().map(|step| step.fault.kind());
            assert!(
                kinds
                    .into_iter()
                    .all(|kind| kind == Kind::Kill || kind == Kind::Stop),
                "{plan:?}"
            );
        }
    }
}
