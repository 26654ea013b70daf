//! Where the run is in its life.

use retouch_proto::Iteration;
use retouch_proto::status::RunState;

use super::io::Outcome;
use super::record::Standing;

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
        /// Why.
        why: Why,
    },
    /// The run has ended; workers are being dismissed.
    Over {
        /// How it ended.
        outcome: Outcome,
        /// How whoever starts it again finds it.
        standing: Standing,
        /// When to exit although some were not dismissed.
        until_ms: u64,
        /// Whether the exit was put out.
        left: bool,
    },
}

/// Why a run stops before its last iteration.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Why {
    /// Somebody wants it to end.
    Ordered,
    /// It can't go on, for this reason.
    Failure(String),
    /// This process is to end. The run goes on, as it stood, when a coordinator is started again.
    Suspension(Standing),
}

impl Phase {
    /// That of a run that stands so at the start of a coordinator; one that is stopping ends at this time at the
    /// latest. A run that has ended is only started to go on.
    pub(super) fn restored(standing: &Standing, until_ms: u64) -> Self {
        match standing {
            Standing::Running | Standing::Stopped | Standing::Failed { .. } => Self::Running,
            Standing::Paused => Self::Paused,
            Standing::Draining { last } => Self::Draining { last: *last },
            Standing::Stopping { failure } => Self::Stopping {
                until_ms,
                why: failure.clone().map_or(Why::Ordered, Why::Failure),
            },
        }
    }

    /// What is recorded of it. A run that has done all of its iterations just runs: it may get more.
    pub(super) fn standing(&self) -> Standing {
        match self {
            Self::Running => Standing::Running,
            Self::Paused => Standing::Paused,
            Self::Draining { last } => Standing::Draining { last: *last },
            Self::Stopping { why, .. } => match why {
                Why::Ordered => Standing::Stopping { failure: None },
                Why::Failure(reason) => Standing::Stopping {
                    failure: Some(reason.clone()),
                },
                Why::Suspension(standing) => standing.clone(),
            },
            Self::Over { standing, .. } => standing.clone(),
        }
    }

    /// Whether the run has ended.
    pub(super) fn is_over(&self) -> bool {
        matches!(self, Self::Over { .. })
    }

    /// Whether the process is to end, or has ended, without the run.
    pub(super) fn is_suspended(&self) -> bool {
        match self {
            Self::Stopping { why, .. } => matches!(why, Why::Suspension(_)),
            Self::Over { outcome, .. } => outcome.suspended,
            _ => false,
        }
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
            Self::Over { outcome, .. } if outcome.suspended => RunState::Stopping,
            Self::Over { outcome, .. } if outcome.failure.is_some() => RunState::Failed,
            Self::Over { .. } => RunState::Finished,
        }
    }

    /// Why the run ended, or ends, other than by anyone's wish.
    pub(super) fn failure(&self) -> Option<&String> {
        match self {
            Self::Over { outcome, .. } => outcome.failure.as_ref(),
            Self::Stopping {
                why: Why::Failure(reason),
                ..
            } => Some(reason),
            _ => None,
        }
    }
}
