//! The learner as a role of a cluster: one process is one rank.
//!
//! In reading order: `inputs` gets what a task needs, `ranks` keeps the collective of
//! the present epoch (`mint` makes what NCCL needs for it), `trainer` makes the step on the device, `checkpoint` makes it
//! durable, and [`run`] does that for every assignment.

mod checkpoint;
mod inputs;
mod mint;
mod ranks;
mod trainer;
mod worker;

pub use worker::{check_device, run};
