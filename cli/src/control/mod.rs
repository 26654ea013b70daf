//! The commands that see or steer a run through its coordinator.
//!
//! In reading order: [`target`] says which run is meant, [`control_grpc`] calls its coordinator, and [`record`] reads the
//! record of a run whose coordinator is gone. Every other module is one command, except that [`steer`] has all those that
//! send the coordinator a single order.

mod control_grpc;
pub(crate) mod events;
pub(crate) mod groups;
mod record;
pub(crate) mod status;
pub(crate) mod steer;
mod target;
pub(crate) mod top;
pub(crate) mod versions;

pub(crate) use self::{
    control_grpc::{ControlClient, Until},
    target::Target,
};
