//! How long a worker waits between calls that fail, and when it gives up.

use std::time::Duration;

use tokio::time::Instant;

use super::{coordinator_grpc::CallError, session::SessionError};

const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// Waits between attempts, longer each time, and gives up in the end.
#[derive(Debug)]
pub(super) struct Backoff {
    since: Instant,
    pause: Duration,
    give_up_after: Duration,
    contact: Contact,
}

/// Whether the coordinator has ever taken this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Contact {
    First,
    Known,
}

impl Backoff {
    /// For a coordinator that is called for the first time.
    pub(super) fn first(give_up_after: Duration) -> Self {
        Self {
            since: Instant::now(),
            pause: PAUSE_MIN,
            give_up_after,
            contact: Contact::First,
        }
    }

    /// For one that has taken this process before.
    pub(super) fn new(give_up_after: Duration) -> Self {
        Self {
            contact: Contact::Known,
            ..Self::first(give_up_after)
        }
    }

    /// How long to wait after this error.
    pub(super) fn next(&mut self, error: CallError) -> Result<Duration, SessionError> {
        let away = self.since.elapsed();
        match error {
            CallError::Refused(reason) => Err(SessionError::Refused(reason)),
            // Whoever was trusted before may come back; a stranger at the first call is a wrong address or token.
            CallError::Distrust(reason) if self.contact == Contact::First => {
                Err(SessionError::Refused(reason))
            }
            CallError::Away(reason) | CallError::Distrust(reason) if away >= self.give_up_after => {
                Err(SessionError::Gone {
                    away_s: away.as_secs(),
                    reason,
                })
            }
            CallError::Away(reason) | CallError::Distrust(reason) => {
                tracing::debug!(reason, "the coordinator is away");
                let pause = self.pause;
                self.pause = (pause * 2).min(PAUSE_MAX);
                Ok(pause)
            }
        }
    }
}
