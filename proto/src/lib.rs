//! What the processes of a run say to one another, and the run file.
//!
//! Reading order: [`ids`] and [`blob`] name things, [`task`] is the work, [`worker`] how work
//! and results travel, [`status`] and [`lookup`] what people see, [`metrics`] what its numbers mean, [`config`] the run
//! file, [`run_folder`] what a run leaves on disk ([`files`] how, [`saved_group`] with which pictures), [`seed`] where all randomness comes from. [`grpc`] has the generated services; its types are named only in
//! files called `<whose>_grpc.rs` (A2), everything else uses the domain types of this crate, and the
//! conversions between the two check every message against [`limits`].

pub mod blob;
pub mod config;
mod convert;
pub mod files;
pub mod grpc;
pub mod ids;
pub mod limits;
pub mod lookup;
pub mod metrics;
pub mod one_or_several;
pub mod paths;
#[allow(missing_docs, unreachable_pub, unused_qualifications, clippy::all)]
mod pb {
    tonic::include_proto!("retouch.v1");
}
pub mod run_folder;
pub mod saved_group;
pub mod seed;
pub mod status;
pub mod task;
pub mod worker;

pub use blob::{BlobAddress, BlobRef, ContentHash};
pub use config::{ConfigErrors, RunConfig};
pub use convert::ConvertError;
pub use ids::{Epoch, Generation, GroupId, Iteration, LeaseId, RunId, WorkerId};
pub use run_folder::RunFolder;
