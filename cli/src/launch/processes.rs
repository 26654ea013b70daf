//! Which processes a run on one machine consists of, and how each is started.

use std::{ffi::OsString, net::SocketAddr, time::Duration};

use retouch_credentials::Principal;
use retouch_proto::{RunConfig, RunFolder, worker::Role};

use super::{
    placement::{self, Seat},
    standing,
    supervisor::ProcessSpec,
};
use crate::credentials::in_run_folder;

pub(super) const COORDINATOR: &str = "coordinator";

/// How long the coordinator may take to write down what is committed. With [`WORKER_GRACE`] it leaves some of the 30 s
/// that Slurm and Kubernetes give a job between SIGTERM and SIGKILL.
const COORDINATOR_GRACE: Duration = Duration::from_secs(23);
/// Nothing of a worker's is lost by then.
const WORKER_GRACE: Duration = Duration::from_secs(4);

/// The coordinator; `first_arguments` are for its lives until one of them has taken up the run.
pub(super) fn coordinator(folder: &RunFolder, first_arguments: Vec<OsString>) -> ProcessSpec {
    let (record, address) = (folder.clone(), folder.coordinator_address());
    ProcessSpec {
        name: COORDINATOR.to_owned(),
        arguments: vec![
            "coordinator".into(),
            folder.config().into(),
            "--parent".into(),
            own_id(),
        ],
        first_arguments,
        has_begun: Box::new(move || address.exists()),
        environment: environment(),
        grace: COORDINATOR_GRACE,
        given_up: Box::new(move || standing::failure(&record)),
    }
}

/// The workers that the run file asks for: all of them on this machine.
pub(super) fn workers(config: &RunConfig, folder: &RunFolder) -> Vec<(Role, ProcessSpec)> {
    let spec = |seat: Seat| ProcessSpec {
        name: seat.name(),
        arguments: worker_arguments(seat, folder)
            .into_iter()
            .chain(reachable(&config.cluster.listen))
            .collect(),
        first_arguments: Vec::new(),
        has_begun: Box::new(|| true),
        environment: environment(),
        grace: WORKER_GRACE,
        given_up: Box::new(|| None),
    };
    let seats = placement::seats(config).into_iter();
    seats.map(|seat| (seat.role, spec(seat))).collect()
}

fn worker_arguments(seat: Seat, folder: &RunFolder) -> Vec<OsString> {
    let name = seat.name();
    let data_dir = folder.scratch(&name);
    let credentials = in_run_folder(folder.path(), Principal::Worker(seat.role));
    // The file, not what is in it: a coordinator that is started again may get another port.
    let address = folder.coordinator_address();
    [
        (seat.role.as_str().into(), None),
        ("--coordinator".into(), Some(address.into_os_string())),
        ("--credentials".into(), Some(credentials.into_os_string())),
        ("--name".into(), Some(name.into())),
        ("--data-dir".into(), Some(data_dir.into_os_string())),
        ("--device".into(), Some(seat.device.to_string().into())),
        ("--parent".into(), Some(own_id())),
    ]
    .into_iter()
    .flat_map(|(flag, value): (OsString, Option<OsString>)| [Some(flag), value])
    .flatten()
    .collect()
}

/// Where a run's coordinator has an address of its own, workers of other machines may join, and must reach ours.
fn reachable(coordinator_listen: &str) -> Vec<OsString> {
    let address = coordinator_listen.parse::<SocketAddr>().ok();
    let own = address.filter(|address| !address.ip().is_unspecified());
    own.map_or(Vec::new(), |own| {
        let any_port = SocketAddr::new(own.ip(), 0).to_string();
        vec!["--listen".into(), any_port.into()]
    })
}

/// Children end with us, however we end.
fn own_id() -> OsString {
    std::process::id().to_string().into()
}

/// A setting of the allocator: how long freed memory is kept, in milliseconds. Phases of a run take turns every few
/// seconds; giving the memory back in between makes a tenth of a worker's time page faults.
const PURGE_DELAY: (&str, &str) = ("MIMALLOC_PURGE_DELAY", "10000");

fn environment() -> Option<(&'static str, &'static str)> {
    std::env::var_os(PURGE_DELAY.0)
        .is_none()
        .then_some(PURGE_DELAY)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_serve_where_the_coordinator_does() {
        assert_eq!(reachable("10.0.0.5:7000"), ["--listen", "10.0.0.5:0"]);
        assert_eq!(reachable("[::1]:7000"), ["--listen", "[::1]:0"]);
        assert!(reachable("0.0.0.0:7000").is_empty());
    }
}
