//! A seeded simulation of whole runs: fake workers on a virtual clock, with faults.
//!
//! Everything between the machine and the fakes can go wrong: [`Strike`] lists what strikes at one
//! moment, and besides messages are late, lost, doubled and overtaken, tasks fail by themselves,
//! and those of a poisoned row always do. After every step `checks` looks at the machine, and at
//! every entry of the record before it is written; once the faults stop the run must finish
//! (liveness), and with the very same adapter as without faults (A8, A9) wherever no group was
//! given up.
//!
//! Reading order: `scenario` and `faults` are a run before it begins; `world` is its clock and what is there (`events`,
//! `seat`, `network`); `delivery`, `coordinator_side`, `worker_side` and `strikes` are what happens in it; `checks` what
//! must hold; [`campaign`] runs many seeds, and tells the [story](campaign::tell) of one. [`fleet`] is a
//! cluster without faults, on which [`schedule`] measures asynchrony and [`scale`] what an event costs.

pub mod campaign;
mod checks;
mod coordinator_side;
mod delivery;
mod events;
pub(super) mod fakes;
mod faults;
pub mod fleet;
mod memory;
mod network;
mod random;
pub mod scale;
mod scenario;
pub mod schedule;
mod seat;
mod story;
mod strikes;
mod tally;
#[cfg(test)]
pub(crate) mod tests;
mod worker_side;
mod world;

pub use faults::Strike;
pub use scenario::WORKERS_MIN;
pub use tally::Tally;
