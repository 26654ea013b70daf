//! The generated services and messages.
//!
//! A2: outside this crate they are named only in files called `<whose>_grpc.rs`, which turn them into
//! domain types at once (`TryFrom`, `From`).

pub use crate::pb::*;
