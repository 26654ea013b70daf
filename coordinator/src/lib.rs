//! The coordinator: decides what happens in a run, and remembers it.
//!
//! It never touches a tensor: only ids, numbers and blob references (A4). Reading order:
//! [`machine`] is the core that decides (A1); [`advantage`], [`filter`] and [`metrics`] are the
//! method's arithmetic; [`store`] is the durable record, `archive` keeps its checkpoints at a URL, [`lookup`] finds
//! things in it for people; `settings` says what may change when a run continues, `fork` begins another run with what may not,
//! and `initial` one from an adapter; `shell` owns machine and record, `tensorboard` draws charts, `services_grpc` talks to the world
//! (`roster` knows who may, `renewal` keeps their certificates good), and [`serve`](serve()) ties them together.

pub mod advantage;
mod archive;
mod dataset;
pub mod filter;
mod fork;
mod initial;
pub mod lookup;
pub mod machine;
pub mod metrics;
mod renewal;
mod roster;
mod serve;
mod services_grpc;
mod settings;
mod shell;
pub mod store;
pub mod tensorboard;

pub use archive::ArchiveError;
pub use fork::{ForkError, fork};
pub use machine::io::{Command, Outcome};
pub use serve::{Admission, Coordinator, CoordinatorOptions, ServeError, serve};
pub use settings::differences;
