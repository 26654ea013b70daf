//! Where the run is in its life.

use retouch_proto::Iteration;
use retouch_proto::status::RunState;

use super::io::Outcome;

/// Where the run is in its life.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Phase {
    /// Work is given out.
    Running,
    /// No work is given out.
    Paused,
    /// The run ends after this iteration.
    Draining {
        /// The last one.
        last: Iteration,
    },
    /// Open work is abandoned while the last committed state is written down.
    Stopping {
        /// When to end without it.
        until_ms: u64,
        /// Why the run cannot continue, if that is why it stops.
        failure: Option<String>,
    },
    /// The run has ended; workers are being dismissed.
    Over {
        /// How it ended.
        outcome: Outcome,
        /// When to exit although some were not dismissed.
        until_ms: u64,
        /// Whether the exit was put out.
        left: bool,
    },
}

impl Phase {
    /// Whether the run has ended.
    pub(super) fn is_over(&self) -> bool {
        matches!(self, Self::Over { .. })
    }

    /// Whether iterations are opened, sampled, scored and trained.
    pub(super) fn is_active(&self) -> bool {
        matches!(self, Self::Running | Self::Draining { .. })
    }

    /// Whether the run is to end with this iteration because somebody drains it.
    pub(super) fn drains_at(&self, iteration: Iteration) -> bool {
        *self == Self::Draining { last: iteration }
    }

    /// The last iteration that may be opened, of `planned` ones.
    pub(super) fn last_iteration(&self, planned: u32) -> Iteration {
        match self {
            Self::Draining { last } => *last,
            _ => Iteration(planned),
        }
    }

    /// Whether the run ends as soon as `committed` is durable, with `planned` iterations in all.
    pub(super) fn wants_end(&self, committed: Iteration, planned: u32) -> bool {
        matches!(self, Self::Stopping { .. }) || committed >= self.last_iteration(planned)
    }

    /// Whether the last state was to be written down by now.
    pub(super) fn is_stop_overdue(&self, now_ms: u64) -> bool {
        matches!(self, Self::Stopping { until_ms, .. } if *until_ms <= now_ms)
    }

    /// The run's state as people see it.
    pub(super) fn state(&self) -> RunState {
        match self {
            Self::Running => RunState::Running,
            Self::Paused => RunState::Paused,
            Self::Draining { .. } => RunState::Draining,
            Self::Stopping { .. } => RunState::Stopping,
            Self::Over { outcome, .. } if outcome.failure.is_some() => RunState::Failed,
            Self::Over { .. } => RunState::Finished,
        }
    }

    /// Why the run ended, or ends, other than by anyone's wish.
    pub(super) fn failure(&self) -> Option<&String> {
        match self {
            Self::Over { outcome, .. } => outcome.failure.as_ref(),
            Self::Stopping { failure, .. } => failure.as_ref(),
            _ => None,
        }
    }

    /// Takes the failure that a stopping run was to end with.
    pub(super) fn take_failure(&mut self) -> Option<String> {
        match self {
            Self::Stopping { failure, .. } => failure.take(),
            _ => None,
        }
    }
}
