//! Samples groups of edits with the old policy.
//!
//! In reading order: [`source`] loads what is edited, [`sampler`] turns it and an
//! adapter into candidates on the device, [`run`] does that for every assignment and
//! serves the results as blobs.

mod lru;
pub mod sampler;
pub mod source;
mod worker;

pub use worker::run;
