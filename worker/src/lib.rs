//! What the three worker roles share.
//!
//! A role calls [`Session::connect`], loads its models on a [`DeviceThread`] while
//! the session reports `Loading`, and hands [`Session::serve`] a function from an
//! assignment to its outcome. The session talks to the coordinator; [`blobs`] holds
//! and moves bulk data; [`process`] and [`telemetry`] are for the binary.

pub mod blobs;
mod device;
pub mod process;
mod server;
pub mod session;
pub mod telemetry;

pub use device::{DeviceError, DeviceThread, Hosted};
pub use session::{Identity, Session, SessionError, Work, WorkerOptions};
