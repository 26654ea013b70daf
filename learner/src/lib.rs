//! The learner: DiffusionNFT on sealed iterations, and supervised fine-tuning.
//!
//! Reading order: [`step`] is one iteration from top to bottom. [`plan`] says which samples it learns from at which
//! noise, [`nft`] is its loss; [`clip`], [`adamw`] and [`schedule`] are what an update does to parameters, and
//! [`state`] is what carries it on. [`shards`] and [`lanes`] divide the work so that results do not depend on how many
//! ranks and threads share it; [`collective`] adds their sums up. [`session`] is the role of a cluster's process, and
//! [`dry_run`] an iteration before there is one, [`workload`] its size, [`initial`] an adapter that a run starts from. [`sft`] is the
//! other training, and [`card`] what the adapters of both say of themselves.

// What tests of the inside share with those of the outside names the crate as they do.
#[cfg(test)]
extern crate self as retouch_learner;

pub mod adamw;
pub mod card;
pub mod clip;
pub mod collective;
pub mod dry_run;
pub mod initial;
pub mod lanes;
pub mod metrics;
pub mod nft;
pub mod plan;
pub mod schedule;
pub mod session;
pub mod sft;
pub mod shards;
pub mod state;
pub mod step;
mod vectors;
pub mod workload;

pub use vectors::VectorsError;
