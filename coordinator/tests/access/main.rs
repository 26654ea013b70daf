//! Who may do what with a coordinator: real certificates, real sockets.

mod callers_grpc;
#[path = "../common/mod.rs"]
mod common;
