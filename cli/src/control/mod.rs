//! The commands that see or steer a run through its coordinator.
//!
//! In reading order: [`target`] says which run is meant, [`control_grpc`] calls its coordinator, and [`record`] reads the
//! folder of a run that has none any more. Each other module is one command, but for [`steer`], which has all that only
//! tell the coordinator something.

mod control_grpc;
pub(crate) mod events;
pub(crate) mod groups;
mod record;
pub(crate) mod status;
pub(crate) mod steer;
mod target;
pub(crate) mod top;
pub(crate) mod versions;

pub(crate) use self::{control_grpc::ControlClient, target::Target};
