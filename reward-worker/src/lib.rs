//! Scores whole groups of edits with judges.
//!
//! In reading order: [`scorer`] holds the judges and weighs their terms on the
//! device, [`run`] scores the coordinator's groups, and the `Judge` service those of
//! direct callers; `keep` leaves one group of each iteration in the run folder. A group that can't be scored is a failure with its reason, never
//! a score (A5).

mod judge_grpc;
mod keep;
pub mod scorer;
mod worker;

pub use worker::run;
