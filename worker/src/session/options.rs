//! Who joins a run, and how.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use retouch_credentials::Access;
use retouch_proto::{RunConfig, WorkerId, config::PathMove, worker::Role};
use tokio_util::sync::CancellationToken;

use super::address::CoordinatorAddress;
use crate::{DeviceThread, blobs::FetchLimits, role::BoxError};

/// Whether a role's models fit on a device, by its name; what is wrong otherwise. It may block.
pub type CheckRoom = fn(&RunConfig, Role, &str) -> Result<(), BoxError>;

/// What the command line says about a worker.
#[derive(Clone, Debug)]
pub struct WorkerOptions {
    /// Where the coordinator is.
    pub coordinator: CoordinatorAddress,
    /// How this worker proves its role.
    pub access: Access,
    /// The worker's name, kept over restarts.
    pub worker: WorkerId,
    /// The device to compute on instead of the run file's.
    pub device: Option<String>,
    /// Where to serve blobs; port 0 takes a free one.
    pub listen: SocketAddr,
    /// The host under which other workers reach this one, if not that of `listen`.
    pub advertise: Option<String>,
    /// A folder of this worker alone.
    pub data_dir: PathBuf,
    /// The run folder, if it is not where the run file says.
    pub run_dir: Option<PathBuf>,
    /// Where folders of the run file are on this machine.
    pub paths: Vec<PathMove>,
    /// Compute threads instead of the run file's.
    pub threads: Option<u32>,
    /// Asked before models are loaded: whether the device has room for them.
    pub check_room: CheckRoom,
    /// Where this role computes: shared with the other roles of the process.
    pub device_thread: DeviceThread,
    /// Blobs beyond this go to files.
    pub memory_bytes_max: u64,
    /// Blobs beyond memory and this are refused.
    pub disk_bytes_max: u64,
    /// How patient fetches are.
    pub fetch: FetchLimits,
    /// How long the coordinator may be away before this process gives up.
    pub give_up_after: Duration,
    /// How long started work may go on after `stop`.
    pub stop_grace: Duration,
    /// Cancelled when the process should end.
    pub stop: CancellationToken,
}

impl WorkerOptions {
    /// Options with the usual limits.
    pub fn new(
        coordinator: impl Into<CoordinatorAddress>,
        access: Access,
        worker: WorkerId,
        data_dir: PathBuf,
    ) -> Self {
        Self {
            coordinator: coordinator.into(),
            access,
            worker,
            device: None,
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            advertise: None,
            data_dir,
            run_dir: None,
            paths: Vec::new(),
            threads: None,
            check_room: |_, _, _| Ok(()),
            device_thread: DeviceThread::default(),
            memory_bytes_max: 2 << 30,
            disk_bytes_max: 64 << 30,
            fetch: FetchLimits::default(),
            give_up_after: Duration::from_secs(600),
            stop_grace: Duration::from_secs(20),
            stop: CancellationToken::new(),
        }
    }

    /// The run file as it is for this worker.
    pub(super) fn localized(&self, config: RunConfig) -> RunConfig {
        let mut config = config.relocated(&self.paths);
        if let Some(threads) = self.threads {
            config.cluster.threads_per_worker = threads;
        }
        config
    }
}

/// What a role says about itself.
#[derive(Clone, Copy, Debug)]
pub struct Identity {
    /// The role.
    pub role: Role,
    /// Tasks that are taken at a time.
    pub slots: u32,
    /// Where peers of the collective reach it (learners).
    pub collective_address: Option<SocketAddr>,
}

impl Identity {
    /// A worker that takes `slots` tasks at a time and is in no collective.
    pub fn new(role: Role, slots: u32) -> Self {
        Self {
            role,
            slots,
            collective_address: None,
        }
    }
}
