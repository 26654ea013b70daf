//! Which processes a run on one machine consists of, and how each is started.

use std::{
    ffi::OsString,
    io::Write,
    net::SocketAddr,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use anyhow::Context;
use retouch_proto::RunConfig;

use super::supervisor::ProcessSpec;

pub(crate) const COORDINATOR: &str = "coordinator";
/// The environment variable that carries the join token: other users can read a command line.
pub(crate) const TOKEN_VARIABLE: &str = "RETOUCH_TOKEN";

const TOKEN_BYTES: usize = 16;

pub(crate) fn coordinator(run_dir: &Path, token: &str) -> ProcessSpec {
    ProcessSpec {
        name: COORDINATOR.to_owned(),
        arguments: vec![
            "coordinator".into(),
            run_dir.join("config.toml").into(),
            "--parent".into(),
            own_id(),
        ],
        environment: environment(token),
        ends_by_itself: true,
    }
}

/// The workers that the run file asks for: all of them on this machine.
pub(crate) fn workers(
    config: &RunConfig,
    run_dir: &Path,
    address: &str,
    token: &str,
) -> Vec<ProcessSpec> {
    let roles = [
        (
            "rollout-worker",
            config.cluster.rollout_workers,
            &config.model.device,
        ),
        (
            "reward-worker",
            config.cluster.reward_workers,
            &config.reward.device,
        ),
        ("learner", config.learner.ranks, &config.learner.device),
    ];
    let specs = roles.into_iter().flat_map(|(role, count, device)| {
        (0..count).map(move |index| {
            let name = format!("{role}-{index}");
            ProcessSpec {
                arguments: worker_arguments(role, &name, run_dir, address, device)
                    .into_iter()
                    .chain(reachable(&config.cluster.listen))
                    .collect(),
                name,
                environment: environment(token),
                ends_by_itself: true,
            }
        })
    });
    specs.collect()
}

fn worker_arguments(
    role: &str,
    name: &str,
    run_dir: &Path,
    address: &str,
    device: &str,
) -> Vec<OsString> {
    let data_dir = super::scratch(run_dir, name);
    [
        (role.into(), None),
        ("--coordinator".into(), Some(address.into())),
        ("--name".into(), Some(name.into())),
        ("--data-dir".into(), Some(data_dir.into_os_string())),
        ("--device".into(), Some(device.into())),
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

fn environment(token: &str) -> Vec<(String, String)> {
    let mut variables = vec![(TOKEN_VARIABLE.to_owned(), token.to_owned())];
    let (name, value) = PURGE_DELAY;
    if std::env::var_os(name).is_none() {
        variables.push((name.to_owned(), value.to_owned()));
    }
    variables
}

/// The run's join token: made once, kept in the run folder for its owner's eyes only.
pub(crate) fn join_token(run_dir: &Path) -> anyhow::Result<String> {
    let file: PathBuf = run_dir.join(retouch_coordinator::TOKEN_FILE_NAME);
    if let Ok(token) = std::fs::read_to_string(&file) {
        return Ok(token.trim().to_owned());
    }
    let token = random_token()?;
    let options = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&file);
    let mut opened = options.with_context(|| format!("can't create {}", file.display()))?;
    writeln!(opened, "{token}").with_context(|| format!("can't write {}", file.display()))?;
    Ok(token)
}

fn random_token() -> anyhow::Result<String> {
    let mut bytes = [0; TOKEN_BYTES];
    let mut source = std::fs::File::open("/dev/urandom").context("can't open /dev/urandom")?;
    std::io::Read::read_exact(&mut source, &mut bytes).context("can't read /dev/urandom")?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
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
