//! One test per rule, each with peers that do exactly what they are told to.

mod collecting;
mod driver;
mod life;
mod losing;
mod reporting;
mod staleness;
mod training;
