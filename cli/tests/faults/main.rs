//! What happens to machines and networks must not show in a run's result.

mod chaos;
mod forwarder;
#[path = "../harness/mod.rs"]
mod harness;
mod namespaces;
mod network;
mod secrets;
