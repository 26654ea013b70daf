//! What a role sees of its life with the coordinator.

use std::{io, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use retouch_credentials::CredentialsError;
use retouch_proto::{
    BlobAddress, LeaseId,
    config::{ConfigErrors, RunConfig, SeveralDevices},
    files::is_lasting,
    limits::SLOTS_MAX,
    task::{TaskFailure, TaskOutcome},
    worker::{Registration, Role},
};
use thiserror::Error;
use tokio::{
    sync::mpsc,
    task::{JoinError, JoinHandle, JoinSet},
    time::Instant,
};
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::service::Routes;

use super::{
    blobs::Blobs,
    books::{Books, Work},
    coordinator_grpc::CoordinatorCalls,
    link::{self, Command, Link, Pace},
    options::{CheckRoom, Identity, WorkerOptions},
};
use crate::{
    DeviceThread, Hosted,
    blobs::{
        BlobClient, BlobClientOptions, BlobStore, BlobStoreError, BlobStoreOptions,
        blobs_grpc::BlobService,
    },
    panics::panic_message,
    process,
    role::{BoxError, RoleError},
    server,
};

/// Why a worker's life ended otherwise than with the run.
#[derive(Debug, Error)]
pub enum SessionError {
    /// The worker's port can't be opened.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// The address asked for.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The blob store can't be opened.
    #[error(transparent)]
    Store(#[from] BlobStoreError),
    /// The certificate can't be used, or the coordinator's address makes no sense.
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    /// The coordinator does not take this worker.
    #[error("the coordinator refused: {0}")]
    Refused(String),
    /// The coordinator did not come back.
    #[error("the coordinator has been away for {away_s} s, giving up: {reason}")]
    Gone {
        /// For how long.
        away_s: u64,
        /// What the last attempt said.
        reason: String,
    },
    /// The coordinator's run file can't be read.
    #[error("the coordinator's run file: {0}")]
    Config(#[from] ConfigErrors),
    /// The run file leaves it open where this worker computes.
    #[error(transparent)]
    Device(#[from] SeveralDevices),
    /// Somebody wants this process to be started again.
    #[error("told to end and to be started again")]
    Restart,
    /// The process was told to end before it could take work.
    #[error("stopped before it could take work")]
    Stopped,
    /// The loop that talks to the coordinator broke.
    #[error("the session broke: {0}")]
    Broken(#[from] JoinError),
}

impl SessionError {
    /// Whether the same process started again would end the same way.
    pub fn is_lasting(&self) -> bool {
        match self {
            Self::Store(BlobStoreError::Io { source, .. }) => is_lasting(source),
            Self::Listen { .. } | Self::Config(_) | Self::Device(_) | Self::Refused(_) => true,
            Self::Credentials(error) => error.is_lasting(),
            // A predecessor that was just killed may still hold the blob folder.
            Self::Store(_)
            | Self::Gone { .. }
            | Self::Restart
            | Self::Stopped
            | Self::Broken(_) => false,
        }
    }
}

/// A worker that has joined a run.
#[derive(Debug)]
pub struct Session {
    config: Arc<RunConfig>,
    run_dir: PathBuf,
    role: Role,
    device: String,
    check_room: CheckRoom,
    device_thread: DeviceThread,
    blobs: Blobs,
    work: mpsc::Receiver<Work>,
    commands: mpsc::Sender<Command>,
    link: JoinHandle<Result<(), SessionError>>,
    stop: CancellationToken,
    /// Others fetch from here for as long as the session lasts, also while this worker is leaving.
    _serving: DropGuard,
}

impl Session {
    /// Opens the worker's port and joins the run, waiting for a coordinator that is
    /// not there yet. The worker is reported as loading until [`Self::serve`].
    ///
    /// `routes` are further services on the worker's port.
    ///
    /// # Errors
    ///
    /// If the port or data folder can't be opened, or the coordinator refuses or
    /// stays away.
    pub async fn connect(
        options: WorkerOptions,
        identity: Identity,
        routes: Routes,
    ) -> Result<Self, SessionError> {
        // The port comes first: the registration says where this worker serves its blobs.
        let (store, address, serving) = serve_blobs(&options, routes).await?;
        let mut calls = CoordinatorCalls::new(options.coordinator.clone(), options.access.clone())?;
        let mut books = Books::new(registration(&options, identity, address.clone()));
        let stop = options.stop.clone();
        let joining = link::join(&mut calls, &mut books, &store, options.give_up_after);
        let registered = tokio::select! {
            registered = joining => registered?,
            () = stop.cancelled() => return Err(SessionError::Stopped),
        };
        let config = RunConfig::from_toml(&registered.config_toml)?;
        let config = Arc::new(options.localized(config));
        tracing::info!(run = %registered.run, generation = %registered.generation, role = %identity.role, "joined");

        let device = match &options.device {
            Some(device) => device.clone(),
            None => config.device_of(identity.role)?.to_string(),
        };
        let run_dir = options.run_dir.clone();
        let run_dir = run_dir.unwrap_or_else(|| PathBuf::from(&config.run_dir));
        let client_options = BlobClientOptions {
            access: options.access.clone(),
            run_folder: Some(run_dir.clone()),
            own_address: Some(address.clone()),
            limits: options.fetch,
        };
        let client = BlobClient::new(store.clone(), client_options);
        // A role has at most this many tasks, and each has one end: neither channel is ever full
        // unless a coordinator gives out more than there are slots (`Link::hand_out`).
        let (work_sender, work) = mpsc::channel(SLOTS_MAX);
        let (commands, command_receiver) = mpsc::channel(SLOTS_MAX);
        let link = Link {
            books,
            calls,
            store,
            blobs: client.clone(),
            commands: command_receiver,
            work: work_sender,
            pace: pace(&options, &config),
            registered: Instant::now(),
            stop: stop.clone(),
        };
        Ok(Self {
            config,
            run_dir,
            role: identity.role,
            device,
            check_room: options.check_room,
            device_thread: options.device_thread,
            blobs: Blobs { client, address },
            work,
            commands,
            // From here on, so that the coordinator hears of a worker whose models take minutes to load.
            link: tokio::spawn(link.run()),
            stop,
            _serving: serving,
        })
    }

    /// The resolved run file.
    pub fn config(&self) -> &Arc<RunConfig> {
        &self.config
    }

    /// The run folder as this process sees it.
    pub fn run_dir(&self) -> &PathBuf {
        &self.run_dir
    }

    /// The device on which this role computes: the command line's, else the run file's.
    pub fn device(&self) -> &str {
        &self.device
    }

    /// The blobs of this worker.
    pub fn blobs(&self) -> Blobs {
        self.blobs.clone()
    }

    /// Makes the role's models on its device thread, from the run file and the device's name.
    ///
    /// # Errors
    ///
    /// If the device has no room, or what `make` returns, as [`RoleError::Load`]; if it panics, or the compute threads can't be
    /// started; [`SessionError::Stopped`] if the process is to end, which does not wait for `make`.
    pub async fn load<S: Send + 'static>(
        &self,
        make: impl FnOnce(&RunConfig, &str) -> Result<S, BoxError> + Send + 'static,
    ) -> Result<Hosted<S>, RoleError> {
        // Not earlier: their number is in the run file, which comes with the registration.
        process::set_compute_threads(self.config.cluster.threads_per_worker)?;
        let (config, device) = (self.config.clone(), self.device.clone());
        let (role, check_room) = (self.role, self.check_room);
        let loaded = self.device_thread.host(move || {
            check_room(&config, role, &device)?;
            make(&config, &device)
        });
        tokio::select! {
            loaded = loaded => loaded?.map_err(RoleError::Load),
            // Weights may take minutes, and nothing is lost with them.
            () = self.stop.cancelled() => Err(SessionError::Stopped.into()),
        }
    }

    /// Takes work from now on: models are loaded. Every assignment becomes one call
    /// of `answer`; a panic in it is a failure that may be tried again. Returns when
    /// the run has ended or the process was told to stop.
    ///
    /// # Errors
    ///
    /// If the coordinator refuses or stays away.
    pub async fn serve<F>(mut self, mut answer: impl FnMut(Work) -> F) -> Result<(), SessionError>
    where
        F: Future<Output = Result<TaskOutcome, TaskFailure>> + Send + 'static,
    {
        let _ = self.commands.send(Command::Ready).await;
        let mut tasks: JoinSet<()> = JoinSet::new();
        // The link drops its end when it is over, for whatever reason: that is the end of the work.
        while let Some(work) = self.work.recv().await {
            let lease = work.assignment.lease;
            // A task of its own, so that a panic ends this answer and not the worker.
            let task = tokio::spawn(answer(work));
            tasks.spawn(report_end(lease, task, self.commands.clone()));
            while tasks.try_join_next().is_some() {}
        }
        self.link.await?
    }
}

async fn report_end(
    lease: LeaseId,
    task: JoinHandle<Result<TaskOutcome, TaskFailure>>,
    commands: mpsc::Sender<Command>,
) {
    let outcome = task
        .await
        .unwrap_or_else(|error| Err(TaskFailure::retryable(broken(error))))
        .unwrap_or_else(|failure| {
            tracing::warn!(%lease, reason = failure.reason, "a task failed");
            TaskOutcome::Failed(failure)
        });
    let _ = commands.send(Command::Finished(lease, outcome)).await;
}

fn broken(error: JoinError) -> String {
    match error.try_into_panic() {
        Ok(panic) => format!("the task panicked: {}", panic_message(&*panic)),
        Err(error) => format!("the task broke: {error}"),
    }
}

/// Opens the blob store and the worker's port; gives the address under which others reach it, for as long as
/// the guard lives.
async fn serve_blobs(
    options: &WorkerOptions,
    routes: Routes,
) -> Result<(BlobStore, BlobAddress, DropGuard), SessionError> {
    let listen = |source| SessionError::Listen {
        address: options.listen,
        source,
    };
    let (listener, bound) = server::bind(options.listen).await.map_err(listen)?;
    let store = BlobStore::open(BlobStoreOptions {
        folder: options.data_dir.join("blobs"),
        memory_bytes_max: options.memory_bytes_max,
        disk_bytes_max: options.disk_bytes_max,
    })?;
    let service = BlobService::new(store.clone(), options.access.clone());
    let end = CancellationToken::new();
    server::spawn(listener, &options.access, service, routes, end.clone())?;
    Ok((store, advertised(options, bound), end.drop_guard()))
}

fn advertised(options: &WorkerOptions, bound: SocketAddr) -> BlobAddress {
    let host = options.advertise.clone().unwrap_or_else(|| match bound {
        SocketAddr::V4(address) => address.ip().to_string(),
        SocketAddr::V6(address) => format!("[{}]", address.ip()),
    });
    BlobAddress::Grpc(format!("{host}:{}", bound.port()))
}

fn registration(
    options: &WorkerOptions,
    identity: Identity,
    blob_address: BlobAddress,
) -> Registration {
    Registration {
        worker: options.worker.clone(),
        role: identity.role,
        slots: identity.slots,
        device: options.device.clone().unwrap_or_default(),
        blob_address,
        collective_address: identity.collective_address,
        holds: Vec::new(),
        running: Vec::new(),
    }
}

fn pace(options: &WorkerOptions, config: &RunConfig) -> Pace {
    Pace {
        heartbeat: Duration::from_millis(config.cluster.heartbeat_ms),
        held_max: Duration::from_millis(config.cluster.report_wait_ms_max),
        give_up_after: options.give_up_after,
        stop_grace: options.stop_grace,
    }
}
