//! Status and events.

use super::{ConvertError, Result, text};
use crate::ids::Iteration;
use crate::limits::REASON_BYTES_MAX;
use crate::pb;
use crate::status::{Event, EventKind, RunStatus};

impl From<Event> for pb::Event {
    fn from(event: Event) -> Self {
        Self {
            sequence: event.sequence,
            time_unix_ms: event.time_unix_ms,
            iteration: event.iteration.0,
            kind: event.kind.as_str().to_owned(),
            message: event.message,
        }
    }
}

impl TryFrom<pb::Event> for Event {
    type Error = ConvertError;

    fn try_from(event: pb::Event) -> Result<Self> {
        let unknown = || ConvertError::new("event.kind", format!("{:?} is unknown", event.kind));
        Ok(Self {
            sequence: event.sequence,
            time_unix_ms: event.time_unix_ms,
            iteration: Iteration(event.iteration),
            kind: EventKind::from_name(&event.kind).ok_or_else(unknown)?,
            message: text("event.message", event.message, 2 * REASON_BYTES_MAX)?,
        })
    }
}

impl TryFrom<&RunStatus> for pb::StatusReply {
    type Error = ConvertError;

    fn try_from(status: &RunStatus) -> Result<Self> {
        let json = serde_json::to_string(status);
        let status_json = json.map_err(|error| ConvertError::new("status", error))?;
        Ok(Self { status_json })
    }
}

impl TryFrom<pb::StatusReply> for RunStatus {
    type Error = ConvertError;

    fn try_from(reply: pb::StatusReply) -> Result<Self> {
        serde_json::from_str(&reply.status_json).map_err(|error| ConvertError::new("status", error))
    }
}
