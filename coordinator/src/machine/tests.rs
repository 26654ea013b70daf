//! One test per rule, each with peers that do exactly what they are told to.

mod checkpointing;
mod collecting;
mod driver;
mod leaving;
mod life;
mod looking;
mod losing;
mod reporting;
mod staleness;
mod standing;
mod training;
