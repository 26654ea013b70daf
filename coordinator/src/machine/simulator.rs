//! A seeded simulation of whole runs: fake workers on a virtual clock, with faults.
//!
//! Everything between the machine and the fakes can go wrong: messages are late, lost, doubled
//! and overtaken, workers crash and come back, the coordinator crashes before or after its record
//! is written, tasks fail or hang, blobs vanish, learners go away for good. After every step
//! `checks` looks at the machine; at the end the run must have finished, and with the very same
//! adapter as without faults (A8, A9).

mod checks;
mod coordinator_side;
pub(super) mod fakes;
mod faults;
mod memory;
mod random;
mod tests;
mod worker_side;
mod world;
