//! Who may do what with a coordinator: real certificates, real sockets.

#[path = "../common/mod.rs"]
mod common;
mod grpc;
