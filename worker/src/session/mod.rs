//! A worker's life with the coordinator.
//!
//! In reading order: [`WorkerOptions`] and [`Identity`] say who joins, [`CoordinatorAddress`] where, `books` is
//! what a worker knows of its own work (no IO), `link` repeats reports and survives
//! a coordinator that is away (`backoff`), [`Session`] is what a role sees of it all, with [`Blobs`] for its tasks.

mod address;
mod backoff;
mod blobs;
mod books;
mod coordinator_grpc;
mod link;
mod options;
#[expect(clippy::module_inception, reason = "one noun per file")]
mod session;

pub use address::CoordinatorAddress;
pub use blobs::Blobs;
pub use books::Work;
pub use options::{CheckRoom, Identity, WorkerOptions};
pub use session::{Session, SessionError};

#[cfg(test)]
mod tests;
