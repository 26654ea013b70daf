//! What people see of the run: counters, rates, history, events. Nothing here decides what is done; only whether a run that
//! is done has learned anything is told by it.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

use retouch_proto::status::{Event, EventKind, IterationMetrics, Totals};
use retouch_proto::{Iteration, WorkerId};

use super::record::Record;

/// Iterations whose metrics are kept at hand.
const HISTORY_MAX: usize = 100;
/// Iterations that the estimate of the remaining time looks at.
const ETA_ITERATIONS: usize = 10;
/// Iterations that a [`Trend`] averages over: what the prompts of one iteration happen to be must not matter.
const TREND_ITERATIONS: usize = 10;
/// Rates are over this much of the past.
const WINDOW_MS: u64 = 60_000;

/// Where the mean score of a reward term goes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Trend {
    /// The mean over the last iterations.
    pub now: f64,
    /// The best mean over as many earlier ones.
    pub best: f64,
}

impl Trend {
    fn of(scores: &[f64]) -> Option<Self> {
        let windows = scores.windows(TREND_ITERATIONS);
        let mut means = windows.map(|window| window.iter().sum::<f64>() / window.len() as f64);
        let now = means.next_back()?;
        let best = means.reduce(f64::max)?;
        Some(Self { now, best })
    }
}

/// What people see of the run.
pub(super) struct Telemetry {
    /// Since when this coordinator runs: rates are over no longer a time.
    started_ms: u64,
    /// Counters over the whole run; recorded with each commit.
    pub totals: Totals,
    /// Metrics of the last iterations, oldest first, so that a status needs no query of the record.
    history: VecDeque<IterationMetrics>,
    sampled: Window,
    scored: Window,
    /// The last event's number: listeners that reconnect ask for what came after the last one they have.
    event_sequence: u64,
    /// When something last moved; a run without progress for long is stalled.
    progress_ms: u64,
    /// Causes of stalls that were reported since then, so that each is reported once.
    stalled: BTreeSet<String>,
    /// Whose disks were found full since the last commit, so that each is reported once: how full may differ each time.
    shortages: BTreeMap<WorkerId, String>,
    /// Alarms that the last iteration raised, so that one that persists is reported once.
    raised: BTreeSet<&'static str>,
}

impl Telemetry {
    /// What the record says.
    pub(super) fn restored(record: &Record, now_ms: u64) -> Self {
        Self {
            started_ms: now_ms,
            totals: record.totals,
            history: record.history.iter().cloned().collect(),
            sampled: Window::default(),
            scored: Window::default(),
            event_sequence: record.event_sequence,
            progress_ms: now_ms,
            stalled: BTreeSet::new(),
            shortages: BTreeMap::new(),
            raised: BTreeSet::new(),
        }
    }

    /// Numbers an event.
    pub(super) fn event(
        &mut self,
        now_ms: u64,
        iteration: Iteration,
        kind: EventKind,
        message: String,
    ) -> Event {
        self.event_sequence += 1;
        Event {
            sequence: self.event_sequence,
            time_unix_ms: now_ms,
            iteration,
            kind,
            message,
        }
    }

    /// The last event's number.
    #[cfg(any(test, feature = "simulator"))]
    pub(super) fn event_sequence(&self) -> u64 {
        self.event_sequence
    }

    /// Something moved: stalls that come later are new ones.
    pub(super) fn moved(&mut self, now_ms: u64) {
        self.progress_ms = now_ms;
        self.stalled.clear();
    }

    /// For how long nothing has moved.
    pub(super) fn still_ms(&self, now_ms: u64) -> u64 {
        now_ms.saturating_sub(self.progress_ms)
    }

    /// Notes a stall; `true` if its cause was not reported since something last moved.
    pub(super) fn is_new_stall(&mut self, cause: &str) -> bool {
        self.stalled.insert(cause.to_owned())
    }

    /// Notes a worker's full disk; `true` if it was not reported since the last commit.
    pub(super) fn is_new_shortage(&mut self, worker: &WorkerId, message: String) -> bool {
        match self.shortages.entry(worker.clone()) {
            Entry::Vacant(entry) => {
                entry.insert(message);
                true
            }
            Entry::Occupied(_) => false,
        }
    }

    /// Disks that were found full since the last commit.
    pub(super) fn shortages(&self) -> impl Iterator<Item = &String> {
        self.shortages.values()
    }

    /// Iterations in a row, up to the last one, of which nothing was kept.
    pub(super) fn untrained(&self) -> usize {
        let newest_first = self.history.iter().rev();
        newest_first.take_while(|metrics| metrics.kept == 0).count()
    }

    /// Where a reward term's mean score goes; `None` while there are too few.
    pub(super) fn trend(&self, term: &str) -> Option<Trend> {
        let scores = self.history.iter();
        let scores = scores.filter_map(|metrics| metrics.reward_terms.get(term).copied());
        Trend::of(&scores.collect::<Vec<_>>())
    }

    /// Notes the alarms that the last iteration raised, in place of those of the one before; gives those that are new.
    pub(super) fn raise<T>(&mut self, alarms: Vec<(&'static str, T)>) -> Vec<T> {
        let names = alarms.iter().map(|(name, _)| *name).collect();
        let before = std::mem::replace(&mut self.raised, names);
        let new = alarms
            .into_iter()
            .filter(|(name, _)| !before.contains(name));
        new.map(|(_, alarm)| alarm).collect()
    }

    /// A group was sampled.
    pub(super) fn sampled(&mut self, now_ms: u64, candidates: usize) {
        self.totals.groups_sampled += 1;
        self.sampled.add(now_ms, candidates);
    }

    /// A group was scored.
    pub(super) fn scored(&mut self, now_ms: u64, candidates: usize) {
        self.totals.groups_scored += 1;
        self.scored.add(now_ms, candidates);
    }

    /// An iteration was committed.
    pub(super) fn committed(&mut self, metrics: &IterationMetrics) {
        let totals = &mut self.totals;
        totals.groups_kept += u64::from(metrics.kept);
        totals.groups_filtered += u64::from(metrics.filtered);
        totals.groups_dropped += u64::from(metrics.dropped);
        totals.resharded += u64::from(metrics.resharded);
        totals.empty_iterations += u64::from(metrics.kept == 0);
        self.shortages.clear();
        self.history.push_back(metrics.clone());
        if self.history.len() > HISTORY_MAX {
            self.history.pop_front();
        }
    }

    /// Iterations after `to` were taken back.
    pub(super) fn rewound(&mut self, from: Iteration, to: Iteration) {
        self.history.retain(|metrics| metrics.iteration <= to);
        self.totals.rewound += u64::from(from.0 - to.0);
    }

    /// Metrics of the last iterations, oldest first.
    pub(super) fn history(&self) -> impl Iterator<Item = &IterationMetrics> {
        self.history.iter()
    }

    /// How long this coordinator has run.
    pub(super) fn uptime_ms(&self, now_ms: u64) -> u64 {
        now_ms - self.started_ms
    }

    /// Candidates sampled and scored per second of the last minute.
    pub(super) fn per_s(&self, now_ms: u64) -> [f64; 2] {
        let uptime_ms = self.uptime_ms(now_ms);
        [&self.sampled, &self.scored].map(|window| window.per_s(now_ms, uptime_ms))
    }

    /// Mean time of the last iterations in seconds.
    pub(super) fn iteration_s(&self) -> Option<f64> {
        let last = self.history.iter().rev().take(ETA_ITERATIONS);
        let last: Vec<f64> = last.map(|metrics| metrics.stage_s.wall).collect();
        let mean = last.iter().sum::<f64>() / last.len() as f64;
        // The mean of nothing is not a number, which is not above zero either.
        Some(mean).filter(|seconds| *seconds > 0.0)
    }
}

/// Counts of the last while.
#[derive(Default)]
struct Window {
    counts: VecDeque<(u64, usize)>,
}

impl Window {
    fn add(&mut self, now_ms: u64, count: usize) {
        self.counts.push_back((now_ms, count));
        let is_old = |(at_ms, _): &mut (u64, usize)| *at_ms + WINDOW_MS < now_ms;
        while self.counts.pop_front_if(is_old).is_some() {}
    }

    fn per_s(&self, now_ms: u64, uptime_ms: u64) -> f64 {
        let recent = self
            .counts
            .iter()
            .filter(|(at_ms, _)| at_ms + WINDOW_MS >= now_ms);
        let count: usize = recent.map(|(_, count)| count).sum();
        count as f64 * 1e3 / uptime_ms.clamp(1, WINDOW_MS) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trend_compares_the_last_iterations_with_the_best_before() {
        let mut scores = [[0.4; 10], [0.8; 10]].concat();
        assert_eq!(Trend::of(&scores[..10]), None);
        let risen = Trend::of(&scores).expect("a trend");
        assert!(risen.now > risen.best, "{risen:?}");
        scores.extend([0.2; 10]);
        let fallen = Trend::of(&scores).expect("a trend");
        let near = |a: f64, b: f64| (a - b).abs() < 1e-9;
        assert!(
            near(fallen.now, 0.2) && near(fallen.best, 0.8),
            "{fallen:?}"
        );
    }
}
