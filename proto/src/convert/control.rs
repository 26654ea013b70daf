//! What people ask and are told.

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{ConvertError, Result, text};
use crate::ids::Iteration;
use crate::limits::{GROUPS_SHOWN_MAX, PROMPT_BYTES_MAX, REASON_BYTES_MAX};
use crate::lookup::{Attempts, GroupQuery, GroupStage, GroupView, VersionView};
use crate::pb;
use crate::status::{Controlled, Event, EventKind, RunState, RunStatus};

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

impl From<Controlled> for pb::ControlReply {
    fn from(controlled: Controlled) -> Self {
        Self {
            state: controlled.state.to_string(),
            message: controlled.message,
        }
    }
}

impl TryFrom<pb::ControlReply> for Controlled {
    type Error = ConvertError;

    fn try_from(reply: pb::ControlReply) -> Result<Self> {
        let unknown = || ConvertError::new("reply.state", format!("{:?} is unknown", reply.state));
        Ok(Self {
            state: RunState::from_name(&reply.state).ok_or_else(unknown)?,
            message: text("reply.message", reply.message, REASON_BYTES_MAX)?,
        })
    }
}

impl From<GroupQuery> for pb::GroupsRequest {
    fn from(query: GroupQuery) -> Self {
        Self {
            iteration: query.iteration.map(|iteration| iteration.0),
            index: query.index,
            prompt: query.prompt.unwrap_or_default(),
            state: query
                .stage
                .map(|stage| stage.to_string())
                .unwrap_or_default(),
            rewound: query.attempts == Attempts::All,
            limit: query.limit,
        }
    }
}

impl TryFrom<pb::GroupsRequest> for GroupQuery {
    type Error = ConvertError;

    fn try_from(request: pb::GroupsRequest) -> Result<Self> {
        let unknown =
            || ConvertError::new("groups.state", format!("{:?} is unknown", request.state));
        let stage = match request.state.as_str() {
            "" => None,
            name => Some(GroupStage::from_name(name).ok_or_else(unknown)?),
        };
        let prompt = text("groups.prompt", request.prompt, PROMPT_BYTES_MAX)?;
        Ok(Self {
            iteration: request.iteration.map(Iteration),
            index: request.index,
            prompt: Some(prompt).filter(|prompt| !prompt.is_empty()),
            stage,
            attempts: if request.rewound {
                Attempts::All
            } else {
                Attempts::Valid
            },
            limit: request.limit.min(GROUPS_SHOWN_MAX),
        })
    }
}

fn to_json<T: Serialize + ?Sized>(field: &'static str, value: &T) -> Result<String> {
    serde_json::to_string(value).map_err(|error| ConvertError::new(field, error))
}

fn from_json<T: DeserializeOwned>(field: &'static str, json: &str) -> Result<T> {
    serde_json::from_str(json).map_err(|error| ConvertError::new(field, error))
}

impl TryFrom<&[GroupView]> for pb::GroupsReply {
    type Error = ConvertError;

    fn try_from(groups: &[GroupView]) -> Result<Self> {
        let groups_json = to_json("groups", groups)?;
        Ok(Self { groups_json })
    }
}

impl TryFrom<pb::GroupsReply> for Vec<GroupView> {
    type Error = ConvertError;

    fn try_from(reply: pb::GroupsReply) -> Result<Self> {
        from_json("groups", &reply.groups_json)
    }
}

impl TryFrom<&[VersionView]> for pb::VersionsReply {
    type Error = ConvertError;

    fn try_from(versions: &[VersionView]) -> Result<Self> {
        let versions_json = to_json("versions", versions)?;
        Ok(Self { versions_json })
    }
}

impl TryFrom<pb::VersionsReply> for Vec<VersionView> {
    type Error = ConvertError;

    fn try_from(reply: pb::VersionsReply) -> Result<Self> {
        from_json("versions", &reply.versions_json)
    }
}

impl TryFrom<&RunStatus> for pb::StatusReply {
    type Error = ConvertError;

    fn try_from(status: &RunStatus) -> Result<Self> {
        let status_json = to_json("status", status)?;
        Ok(Self { status_json })
    }
}

impl TryFrom<pb::StatusReply> for RunStatus {
    type Error = ConvertError;

    fn try_from(reply: pb::StatusReply) -> Result<Self> {
        from_json("status", &reply.status_json)
    }
}
