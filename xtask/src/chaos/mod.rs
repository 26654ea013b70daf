//! `cargo xtask chaos`: real runs, disturbed at seeded moments, must all end, and with the bits of undisturbed ones.
//!
//! The tests of `cli` include this module for the few runs that CI makes.
//!
//! * [`plan`]: what is done to a run and when, from its seed alone
//! * [`run`]: one run from its first launch to its end; [`processes`], [`orders`] and [`place`] are its hands,
//!   [`settings`] its run file, [`ends`] how `launch` may end
//! * [`campaign`]: many runs; [`report`]: what they showed

pub(crate) mod campaign;
mod ends;
mod orders;
pub(crate) mod place;
pub(crate) mod plan;
mod processes;
mod random;
pub(crate) mod report;
pub(crate) mod run;
mod settings;
