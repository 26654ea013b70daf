//! Registration, reports and replies.

use super::{ConvertError, Result, all, hash, hash_bytes, parsed, text};
use crate::blob::ContentHash;
use crate::ids::{Generation, Iteration, LeaseId};
use crate::limits::{ADDRESS_BYTES_MAX, CONFIG_BYTES_MAX, HASHES_MAX, PREFETCH_MAX, SLOTS_MAX};
use crate::pb;
use crate::worker::*;

impl From<Role> for pb::Role {
    fn from(role: Role) -> Self {
        match role {
            Role::Rollout => Self::Rollout,
            Role::Reward => Self::Reward,
            Role::Learner => Self::Learner,
        }
    }
}

fn role(field: &'static str, role: pb::Role) -> Result<Role> {
    match role {
        pb::Role::Rollout => Ok(Role::Rollout),
        pb::Role::Reward => Ok(Role::Reward),
        pb::Role::Learner => Ok(Role::Learner),
        pb::Role::Unspecified => Err(ConvertError::new(field, "is missing")),
    }
}

impl From<WorkerState> for pb::WorkerState {
    fn from(state: WorkerState) -> Self {
        match state {
            WorkerState::Loading => Self::Loading,
            WorkerState::Ready => Self::Ready,
            WorkerState::Leaving => Self::Leaving,
        }
    }
}

impl TryFrom<pb::WorkerState> for WorkerState {
    type Error = ConvertError;

    fn try_from(state: pb::WorkerState) -> Result<Self> {
        match state {
            pb::WorkerState::Loading => Ok(Self::Loading),
            pb::WorkerState::Ready => Ok(Self::Ready),
            pb::WorkerState::Leaving => Ok(Self::Leaving),
            pb::WorkerState::Unspecified => Err(ConvertError::new("report.state", "is missing")),
        }
    }
}

impl From<Directive> for pb::Directive {
    fn from(directive: Directive) -> Self {
        match directive {
            Directive::Continue => Self::Continue,
            Directive::Reregister => Self::Reregister,
            Directive::Shutdown => Self::Shutdown,
            Directive::Restart => Self::Restart,
        }
    }
}

impl TryFrom<pb::Directive> for Directive {
    type Error = ConvertError;

    fn try_from(directive: pb::Directive) -> Result<Self> {
        match directive {
            pb::Directive::Continue => Ok(Self::Continue),
            pb::Directive::Reregister => Ok(Self::Reregister),
            pb::Directive::Shutdown => Ok(Self::Shutdown),
            pb::Directive::Restart => Ok(Self::Restart),
            pb::Directive::Unspecified => Err(ConvertError::new("reply.directive", "is missing")),
        }
    }
}

impl From<Registration> for pb::RegisterRequest {
    fn from(registration: Registration) -> Self {
        Self {
            worker: registration.worker.into(),
            role: pb::Role::from(registration.role).into(),
            slots: registration.slots,
            device: registration.device,
            blob_address: registration.blob_address.to_string(),
            collective_address: registration
                .collective_address
                .map(|address| address.to_string())
                .unwrap_or_default(),
            holds: registration.holds.iter().map(hash_bytes).collect(),
            running: registration.running.into_iter().map(Into::into).collect(),
        }
    }
}

impl TryFrom<pb::RegisterRequest> for Registration {
    type Error = ConvertError;

    fn try_from(request: pb::RegisterRequest) -> Result<Self> {
        let role = role("register.role", request.role())?;
        let collective_address = match request.collective_address.as_str() {
            "" => None,
            address => Some(parsed("register.collective_address", address)?),
        };
        if role == Role::Learner && collective_address.is_none() {
            return Err(ConvertError::new(
                "register.collective_address",
                "is missing for a learner",
            ));
        }
        Ok(Self {
            worker: parsed("register.worker", &request.worker)?,
            role,
            slots: slots("register.slots", request.slots)?,
            device: text("register.device", request.device, ADDRESS_BYTES_MAX)?,
            blob_address: parsed("register.blob_address", &request.blob_address)?,
            collective_address,
            holds: hashes("register.holds", request.holds)?,
            running: all(
                "register.running",
                request.running,
                SLOTS_MAX,
                TryInto::try_into,
            )?,
        })
    }
}

fn slots(field: &'static str, slots: u32) -> Result<u32> {
    if slots as usize <= SLOTS_MAX {
        return Ok(slots);
    }
    Err(ConvertError::new(
        field,
        format!("{slots}, at most {SLOTS_MAX} are allowed"),
    ))
}

fn hashes(field: &'static str, hashes: Vec<Vec<u8>>) -> Result<Vec<ContentHash>> {
    all(field, hashes, HASHES_MAX, |bytes| hash(field, &bytes))
}

impl From<RunningTask> for pb::RunningTask {
    fn from(task: RunningTask) -> Self {
        Self {
            lease: task.lease.0,
            kind: pb::Role::from(task.kind).into(),
            group: task.group.map(Into::into),
        }
    }
}

impl TryFrom<pb::RunningTask> for RunningTask {
    type Error = ConvertError;

    fn try_from(task: pb::RunningTask) -> Result<Self> {
        Ok(Self {
            lease: LeaseId(task.lease),
            kind: role("running.kind", task.kind())?,
            group: task.group.map(Into::into),
        })
    }
}

impl From<Registered> for pb::RegisterReply {
    fn from(registered: Registered) -> Self {
        Self {
            generation: registered.generation.0,
            run: registered.run.into(),
            config_toml: registered.config_toml,
        }
    }
}

impl TryFrom<pb::RegisterReply> for Registered {
    type Error = ConvertError;

    fn try_from(reply: pb::RegisterReply) -> Result<Self> {
        Ok(Self {
            generation: Generation(reply.generation),
            run: parsed("registered.run", &reply.run)?,
            config_toml: text(
                "registered.config_toml",
                reply.config_toml,
                CONFIG_BYTES_MAX,
            )?,
        })
    }
}

impl From<Report> for pb::ReportRequest {
    fn from(report: Report) -> Self {
        Self {
            worker: report.worker.into(),
            generation: report.generation.0,
            sequence: report.sequence,
            state: pb::WorkerState::from(report.state).into(),
            slots_free: report.slots_free,
            running: report.running.into_iter().map(|lease| lease.0).collect(),
            results: report.results.into_iter().map(Into::into).collect(),
            blobs_added: report.blobs_added.iter().map(hash_bytes).collect(),
            blobs_dropped: report.blobs_dropped.iter().map(hash_bytes).collect(),
        }
    }
}

impl TryFrom<pb::ReportRequest> for Report {
    type Error = ConvertError;

    fn try_from(request: pb::ReportRequest) -> Result<Self> {
        let state = request.state().try_into()?;
        Ok(Self {
            worker: parsed("report.worker", &request.worker)?,
            generation: Generation(request.generation),
            sequence: request.sequence,
            state,
            slots_free: slots("report.slots_free", request.slots_free)?,
            running: leases("report.running", request.running)?,
            results: all(
                "report.results",
                request.results,
                SLOTS_MAX,
                TryInto::try_into,
            )?,
            blobs_added: hashes("report.blobs_added", request.blobs_added)?,
            blobs_dropped: hashes("report.blobs_dropped", request.blobs_dropped)?,
        })
    }
}

fn leases(field: &'static str, leases: Vec<u64>) -> Result<Vec<LeaseId>> {
    all(field, leases, SLOTS_MAX, |lease| Ok(LeaseId(lease)))
}

impl From<ReportReply> for pb::ReportReply {
    fn from(reply: ReportReply) -> Self {
        Self {
            assignments: reply.assignments.into_iter().map(Into::into).collect(),
            cancel: reply.cancel.into_iter().map(|lease| lease.0).collect(),
            prefetch: reply.prefetch.into_iter().map(Into::into).collect(),
            directive: pb::Directive::from(reply.directive).into(),
            committed: reply.committed.0,
        }
    }
}

impl TryFrom<pb::ReportReply> for ReportReply {
    type Error = ConvertError;

    fn try_from(reply: pb::ReportReply) -> Result<Self> {
        let directive = reply.directive().try_into()?;
        Ok(Self {
            assignments: all(
                "reply.assignments",
                reply.assignments,
                SLOTS_MAX,
                TryInto::try_into,
            )?,
            cancel: leases("reply.cancel", reply.cancel)?,
            prefetch: all(
                "reply.prefetch",
                reply.prefetch,
                PREFETCH_MAX,
                TryInto::try_into,
            )?,
            directive,
            committed: Iteration(reply.committed),
        })
    }
}
