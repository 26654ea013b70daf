//! What the three worker roles share.
//!
//! Every role's life is three calls: [`Session::connect`] joins the run, [`Session::load`]
//! makes the role's models on its [`DeviceThread`] while the session reports `Loading`, and
//! [`Session::serve`] answers assignments until the run is over. It ends in a [`RoleError`]
//! otherwise. The session talks to the coordinator; [`blobs`] holds and moves bulk data;
//! [`process`], [`telemetry`] and [`panics`] are for the binary.

pub mod blobs;
mod device;
mod failure;
mod idle;
pub mod panics;
pub mod process;
mod role;
mod server;
pub mod session;
pub mod telemetry;

pub use device::{DeviceError, DeviceThread, Hosted};
pub use idle::{AtWork, Busy};
pub use panics::panic_message;
pub use role::{BoxError, RoleError};
pub use session::{Identity, Session, SessionError, Work, WorkerOptions};
