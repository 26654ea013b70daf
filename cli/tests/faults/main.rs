//! What happens to machines and networks must not show in a run's result.

#[path = "../../../xtask/src/chaos/mod.rs"]
#[allow(
    dead_code,
    reason = "its command line and tests of its own are in xtask"
)]
mod chaos;
mod forwarder;
#[path = "../harness/mod.rs"]
mod harness;
mod kills;
mod namespaces;
mod network;
mod secrets;
