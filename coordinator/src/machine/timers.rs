//! The time of the present input, and what becomes due by itself (A1: no clock, A7: no wait without a deadline).

use std::collections::BTreeSet;

use retouch_proto::{LeaseId, WorkerId};

/// What becomes due by itself.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Timer {
    /// A worker's report must be answered, or the worker is lost.
    Worker(WorkerId),
    /// A lease expires.
    Lease(LeaseId),
    /// Something waits for this time; every step looks at everything, so nothing else is to be said.
    Look,
    /// Time to look for stalls.
    Stalls,
}

/// Time and timers.
pub(super) struct Timers {
    /// The latest time that an input brought. Everything in a step happens at this one moment.
    now_ms: u64,
    /// In the order in which they become due; the set makes setting one twice harmless.
    pending: BTreeSet<(u64, Timer)>,
}

impl Timers {
    /// No timers yet.
    pub(super) fn new(now_ms: u64) -> Self {
        Self {
            now_ms,
            pending: BTreeSet::new(),
        }
    }

    /// The time of the present step.
    pub(super) fn now_ms(&self) -> u64 {
        self.now_ms
    }

    /// A new input's time. A clock that was set back stands still here until it has caught up: deadlines
    /// that have passed must not lie in the future again.
    pub(super) fn advance(&mut self, now_ms: u64) {
        self.now_ms = self.now_ms.max(now_ms);
    }

    /// Sets a timer, which may be due at once.
    pub(super) fn set(&mut self, at_ms: u64, timer: Timer) {
        self.pending.insert((at_ms, timer));
    }

    /// Has another step look at everything at this time.
    pub(super) fn look_at(&mut self, at_ms: u64) {
        // At the earliest in the next millisecond: one that is due now would be waited for by the step that set it.
        self.set(at_ms.max(self.now_ms + 1), Timer::Look);
    }

    /// Cancels a timer that was set for this time.
    pub(super) fn cancel(&mut self, at_ms: u64, timer: Timer) {
        self.pending.remove(&(at_ms, timer));
    }

    /// Takes the next timer that is due.
    pub(super) fn take_due(&mut self) -> Option<Timer> {
        if self.next_ms()? > self.now_ms {
            return None;
        }
        self.pending.pop_first().map(|(_, timer)| timer)
    }

    /// When the next one is due.
    pub(super) fn next_ms(&self) -> Option<u64> {
        self.pending.first().map(|(at_ms, _)| *at_ms)
    }

    /// How many are set.
    #[cfg(any(test, feature = "simulator"))]
    pub(super) fn count(&self) -> usize {
        self.pending.len()
    }
}
