//! `retouch node`: a bare node takes part in a run, with any number of roles.

use std::{
    fs::File,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs, UdpSocket},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use clap::Args;
use retouch_credentials::{Access, Principal};
use retouch_models::{device::cache, editor::EditorSource};
use retouch_proto::{
    RunConfig, WorkerId,
    config::{DeviceName, PathMove},
    worker::Role,
};
use retouch_worker::{
    DeviceThread,
    session::{CoordinatorAddress, WorkerOptions},
};
use tokio::task::JoinSet;

use crate::{
    config::{check, dataset_folder, judge_files, model_file},
    control::ControlClient,
    credentials::CredentialArgs,
    exit::{Unreachable, UsageError},
    memory,
    role_name::RoleName,
    roles::{self, ENROLL_PATIENCE, ProcessArgs, ended_by_itself, unless_stopped},
    room,
    runtime::on_network_threads,
};

const TRY_EVERY: Duration = Duration::from_secs(1);
/// Workers of one role that a node can have.
const WORKERS_MAX: u32 = 256;
/// Of a host's name in a worker's name.
const HOST_CHARS_MAX: usize = 32;

/// Take part in a run with several roles in one process, which share one device and one base model.
///
/// Like `join`, for each of the roles; see there. One role computes at a time, so that the node
/// needs hardly more memory than its largest role alone. Ranks of one collective belong on devices
/// of their own.
///
/// Each role needs its own token (`--token T1,T2`) or folder of credentials (`--credentials FOLDER`
/// with a folder for each role, as `credentials` of the run folder). With --name, workers are
/// called NAME-ROLE.
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct NodeArgs {
    /// What this node is to do, such as `rollout-worker,learner`.
    #[arg(long, required = true, value_delimiter = ',')]
    roles: Vec<RoleName>,
    #[command(flatten)]
    place: Place,
}

/// Where and how a node takes part.
#[derive(Debug, Args)]
pub(crate) struct Place {
    /// The coordinator's address.
    #[arg(long, value_name = "HOST:PORT")]
    coordinator: String,
    /// What the run file has under FROM is under TO here; may be given often.
    #[arg(long = "path", value_name = "FROM=TO")]
    paths: Vec<PathMove>,
    /// The device instead of the run file's: `cpu`, `cuda:N` or `wgpu`. Where the run file names several, one has to be
    /// said.
    #[arg(long)]
    device: Option<DeviceName>,
    /// Compute threads; 0 takes all cores. Without it, the run file's number.
    #[arg(long)]
    threads: Option<u32>,
    /// The worker's name, which no other worker of the run has. Without it: host, role and a number.
    #[arg(long)]
    name: Option<WorkerId>,
    /// A folder for what does not fit into memory. Without it: $RETOUCH_CACHE, or ~/.cache/retouch.
    #[arg(long)]
    scratch: Option<PathBuf>,
    /// Where to serve blobs. Without it: a free port of all interfaces.
    #[arg(long, value_name = "HOST:PORT")]
    listen: Option<SocketAddr>,
    /// The host under which other workers reach this one. Without it: the address from which the coordinator is reached.
    #[arg(long, value_name = "HOST")]
    advertise: Option<String>,
    #[command(flatten)]
    credentials: CredentialArgs,
    #[command(flatten)]
    process: ProcessArgs,
}

pub(crate) fn run(args: NodeArgs) -> anyhow::Result<()> {
    let mut seen = Vec::new();
    for role in args.roles {
        if seen.contains(&role) {
            let problem = format!("--roles has {} twice", Role::from(role));
            return Err(UsageError(problem).into());
        }
        seen.push(role);
    }
    take_part(&seen, args.place)
}

/// Works in these roles until the run is over for all of them, or one of them fails.
pub(crate) fn take_part(roles: &[RoleName], place: Place) -> anyhow::Result<()> {
    on_network_threads(async {
        let stop = place.process.set_up()?;
        let (thread, mut shared) = (DeviceThread::new(memory::give_back), Shared::new(roles));
        let mut at_work = JoinSet::new();
        for (number, role) in roles.iter().map(|role| Role::from(*role)).enumerate() {
            let of = roles.len();
            let access = unless_stopped(place.access(role), &stop).await?;
            let config = unless_stopped(place.fetch_config(&access), &stop).await?;
            let config = config.relocated(&place.paths);
            check_node(role, &config)?;
            let device = match place.device {
                Some(device) => device,
                None => config
                    .device_of(role)
                    .map_err(|error| UsageError(error.to_string()))?,
            };
            shared.check_device(role, device)?;
            let so_far: Vec<Role> = roles[..=number]
                .iter()
                .map(|role| Role::from(*role))
                .collect();
            room::check_together(&config, &so_far, device)?;
            let node = Node::settle(&place, Seat { role, number, of }, &config)?;
            tracing::info!(name = %node.name, scratch = %node.scratch.display(), advertise = node.advertise, "joining");
            let coordinator = place.coordinator.clone();
            let options = WorkerOptions {
                device: Some(device.to_string()),
                listen: node.listen,
                advertise: Some(node.advertise),
                run_dir: Some(config.run_dir.into()),
                paths: place.paths.clone(),
                threads: place.threads,
                device_thread: thread.clone(),
                stop: stop.token().clone(),
                ..WorkerOptions::new(coordinator, access, node.name, node.scratch)
            };
            at_work.spawn(roles::run(role, options, shared.editors.clone()));
        }
        while let Some(ended) = at_work.join_next().await {
            ended??;
        }
        ended_by_itself(&stop)
    })
}

/// What the roles of a process have in common.
struct Shared {
    editors: EditorSource,
    device: Option<(Role, DeviceName)>,
}

impl Shared {
    fn new(roles: &[RoleName]) -> Self {
        let with_editor = [RoleName::RolloutWorker, RoleName::Learner];
        let editors = match with_editor.iter().all(|role| roles.contains(role)) {
            true => EditorSource::shared(),
            false => EditorSource::Own,
        };
        let device = None;
        Self { editors, device }
    }

    fn check_device(&mut self, role: Role, device: DeviceName) -> Result<(), UsageError> {
        let (first, shared) = self.device.get_or_insert((role, device));
        if *shared == device {
            return Ok(());
        }
        Err(UsageError(format!(
            "the roles of a node share one device, but the run file has {first} on {shared} and {role} on {device}; give \
             --device, or a process to each"
        )))
    }
}

impl Place {
    /// Access as a worker of this role, from a coordinator that may still be starting.
    async fn access(&self, role: Role) -> anyhow::Result<Access> {
        let coordinator = CoordinatorAddress::Fixed(self.coordinator.clone());
        self.credentials
            .access(Principal::Worker(role), &coordinator, None, ENROLL_PATIENCE)
            .await
    }

    /// The run file, from a coordinator that may still be starting.
    async fn fetch_config(&self, access: &Access) -> anyhow::Result<RunConfig> {
        let begin = Instant::now();
        loop {
            let config = async {
                let control = ControlClient::connect_as(access, &self.coordinator);
                control.await?.config().await
            };
            match config.await {
                Err(error) if error.is::<Unreachable>() && begin.elapsed() < ENROLL_PATIENCE => {
                    tracing::info!("{error}; trying again");
                    tokio::time::sleep(TRY_EVERY).await;
                }
                config => return config,
            }
        }
    }
}

/// Whether this node has the files that the role needs.
fn check_node(role: Role, config: &RunConfig) -> anyhow::Result<()> {
    let needed = match role {
        Role::Rollout => vec![model_file(config), dataset_folder(config)],
        Role::Reward => judge_files(config),
        Role::Learner => vec![
            model_file(config),
            ("run_dir", Ok(PathBuf::from(&config.run_dir))),
        ],
    };
    check(&needed).context(
        "this node lacks files; copy or mount them, or say with --path FROM=TO where they are",
    )
}

/// One of a process's roles.
#[derive(Clone, Copy)]
struct Seat {
    role: Role,
    number: usize,
    /// How many roles the process has.
    of: usize,
}

impl Seat {
    fn name(self, place: &Place) -> anyhow::Result<Option<WorkerId>> {
        Ok(match &place.name {
            Some(name) if self.of > 1 => Some(WorkerId::new(format!("{name}-{}", self.role))?),
            name => name.clone(),
        })
    }

    /// Roles after the first take the ports that follow.
    fn listen(self, place: &Place) -> Result<Option<SocketAddr>, UsageError> {
        let Some(first) = place.listen.filter(|first| first.port() != 0) else {
            return Ok(place.listen);
        };
        let port = usize::from(first.port()) + self.number;
        let port = u16::try_from(port).map_err(|_| {
            UsageError(format!(
                "no port follows --listen {first} for {}",
                self.role
            ))
        })?;
        Ok(Some(SocketAddr::new(first.ip(), port)))
    }
}

/// What a node decides for itself.
struct Node {
    name: WorkerId,
    scratch: PathBuf,
    listen: SocketAddr,
    advertise: String,
}

impl Node {
    fn settle(place: &Place, seat: Seat, config: &RunConfig) -> anyhow::Result<Self> {
        let base = match &place.scratch {
            Some(scratch) => scratch.clone(),
            None => cache::folder(),
        };
        let base = base.join(config.name.as_str());
        let (name, scratch) = match seat.name(place)? {
            Some(name) => (name.clone(), base.join(name.as_str())),
            None => free_name(&base, &host(), seat.role)?,
        };
        let own = address_towards(&place.coordinator)?;
        let all = match own {
            IpAddr::V4(_) => IpAddr::from(Ipv4Addr::UNSPECIFIED),
            IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        // A coordinator on this machine's loopback is reached by nobody else, and so need we be.
        let listen = if own.is_loopback() { own } else { all };
        Ok(Self {
            name,
            scratch,
            listen: seat.listen(place)?.unwrap_or(SocketAddr::new(listen, 0)),
            advertise: place.advertise.clone().unwrap_or_else(|| host_of(own)),
        })
    }
}

/// An address as the host part of host:port.
fn host_of(address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => format!("[{address}]"),
    }
}

/// The address of this machine from which the coordinator is reached. Nothing is sent.
fn address_towards(coordinator: &str) -> anyhow::Result<IpAddr> {
    let wrong = || {
        UsageError(format!(
            "{coordinator:?} is no address of the form host:port"
        ))
    };
    let mut resolved = coordinator.to_socket_addrs().with_context(wrong)?;
    let remote = resolved.next().ok_or_else(wrong)?;
    let any: IpAddr = match remote {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0)).context("can't open a socket")?;
    let routed = socket.connect(remote).and_then(|()| socket.local_addr());
    let local = routed.with_context(|| format!("no route to {coordinator}"))?;
    Ok(local.ip())
}

fn host() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let clean = name.trim().chars().take(HOST_CHARS_MAX);
    let clean: String = clean
        .map(|c| {
            if c.is_ascii_alphanumeric() || c == '.' {
                c
            } else {
                '-'
            }
        })
        .collect();
    if clean.is_empty() {
        "node".to_owned()
    } else {
        clean
    }
}

/// The first name of this host and role whose folder no living process holds, and the folder. It is held until this
/// process ends, so that the next one of that name is this one started again.
fn free_name(base: &Path, host: &str, role: Role) -> anyhow::Result<(WorkerId, PathBuf)> {
    for number in 0..WORKERS_MAX {
        let name = format!("{host}-{role}-{number}");
        let folder = base.join(&name);
        std::fs::create_dir_all(&folder)
            .with_context(|| format!("can't create the scratch folder {}", folder.display()))?;
        let path = folder.join("lock");
        let lock =
            File::create(&path).with_context(|| format!("can't create {}", path.display()))?;
        if lock.try_lock().is_ok() {
            // Never closed before the process ends: that is what the lock says.
            std::mem::forget(lock);
            return Ok((WorkerId::new(name)?, folder));
        }
    }
    bail!("{WORKERS_MAX} {role} workers of this host run already; give --name")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_process_of_a_node_gets_a_name_of_its_own() {
        let base = tempfile::tempdir().unwrap();
        let name = || {
            let (name, folder) = free_name(base.path(), "gpu1", Role::Rollout).unwrap();
            assert!(folder.is_dir());
            name.as_str().to_owned()
        };
        assert_eq!([name(), name()], ["gpu1-rollout-0", "gpu1-rollout-1"]);
        let (other, _) = free_name(base.path(), "gpu1", Role::Reward).unwrap();
        assert_eq!(other.as_str(), "gpu1-reward-0");
    }

    #[test]
    fn a_host_is_a_name() {
        let id = format!("{}-learner-0", host());
        assert_eq!(WorkerId::new(id.clone()).unwrap().as_str(), id);
    }

    #[test]
    fn the_way_to_a_loopback_coordinator_is_loopback() {
        let address = address_towards("127.0.0.1:7000").unwrap();
        assert_eq!(host_of(address), "127.0.0.1");
        let error = address_towards("nonsense").unwrap_err();
        assert!(error.is::<UsageError>(), "{error}");
    }

    #[test]
    fn missing_files_are_named_with_the_role_that_needs_them() {
        let folder = tempfile::tempdir().unwrap();
        let mut config = retouch_proto::config::preset(retouch_proto::config::Preset::Tiny);
        config.model.path = folder.path().join("editor").display().to_string();
        config.run_dir = folder.path().display().to_string();
        let error = check_node(Role::Learner, &config).unwrap_err();
        let causes: Vec<String> = error.chain().map(ToString::to_string).collect();
        assert!(error.is::<UsageError>(), "{causes:?}");
        assert!(
            causes[1].starts_with("model.path: ") && !causes[1].contains("run_dir"),
            "{causes:?}"
        );
        std::fs::create_dir(folder.path().join("editor")).unwrap();
        std::fs::write(folder.path().join("editor/model_index.json"), "{}").unwrap();
        check_node(Role::Learner, &config).unwrap();
    }
}
