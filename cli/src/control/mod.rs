//! The commands that see or steer a run through its coordinator.
//!
//! In reading order: [`target`] says which run is meant, [`control_grpc`] calls its coordinator, and [`record`] reads the
//! record of a run whose coordinator is gone; [`workers`] is the table of them, and [`candidates`] has shells complete
//! their names. Every other module is one command, except that [`save`] is a part of [`groups`], and [`steer`] has all those
//! that send the coordinator a single order.

mod candidates;
mod control_grpc;
pub(crate) mod events;
pub(crate) mod groups;
mod record;
mod save;
pub(crate) mod status;
pub(crate) mod steer;
mod target;
pub(crate) mod top;
pub(crate) mod versions;
mod workers;

pub(crate) use self::{
    control_grpc::{ControlClient, Until},
    record::{is_held, recorded_config},
    target::{Target, run_folders},
};
