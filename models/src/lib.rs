//! models

pub mod ops;
