//! A coordinator process: dataset, record, machine, services.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use retouch_credentials::{Access, Authority, Credentials, CredentialsError, Principal, Strangers};
use retouch_dataset::{DatasetError, Split};
use retouch_proto::files::{PUBLIC, is_lasting, write_whole};
use retouch_proto::{ConfigErrors, Iteration, RunConfig, RunFolder};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::TcpIncoming;

use crate::archive::{ArchiveError, Keeper, KeeperOptions, bring_back};
use crate::dataset;
use crate::initial;
use crate::lookup::Lookup;
use crate::machine::Machine;
use crate::machine::io::Outcome;
use crate::machine::record::{Record, Standing};
use crate::renewal;
use crate::roster::Roster;
use crate::services_grpc::Services;
use crate::shell::{Handle, Refused, Request, Shell};
use crate::store::{self, Store, StoreError};
use crate::tensorboard::Charts;

const LOCK_ATTEMPTS: u32 = 40;
const LOCK_PAUSE: Duration = Duration::from_millis(50);
/// Open connections are closed this long after the last answer.
const SHUTDOWN_GRACE: Duration = Duration::from_millis(500);
/// A process that is to end waits so long for the last checkpoint to be put away.
const SUSPENDED_GRACE: Duration = Duration::from_secs(5);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// Whom a coordinator admits.
#[derive(Clone, Debug)]
pub enum Admission {
    /// Plain connections, and everybody: for tests and benchmarks within one process.
    Open,
    /// Those with a certificate of the run's own authority, which also issues them for join tokens.
    Authority(Arc<Authority>),
    /// Those with a certificate of the authority that also issued the coordinator's.
    Given(Credentials),
}

impl Admission {
    fn access(&self) -> Result<Access, CredentialsError> {
        match self {
            Self::Open => Ok(Access::Open),
            Self::Authority(authority) => Ok(authority.issue(Principal::Coordinator)?.into()),
            Self::Given(credentials) => Ok(credentials.clone().into()),
        }
    }

    fn authority(&self) -> Option<Arc<Authority>> {
        match self {
            Self::Authority(authority) => Some(authority.clone()),
            Self::Open | Self::Given(_) => None,
        }
    }
}

/// What a coordinator needs to know.
#[derive(Clone, Debug)]
pub struct CoordinatorOptions {
    /// The resolved run file.
    pub config: RunConfig,
    /// The run folder; created if it is not there.
    pub run_dir: PathBuf,
    /// Where to listen; port 0 takes the port of the last start if it is free, else any.
    pub listen: SocketAddr,
    /// Who may call.
    pub admission: Admission,
    /// Go on with a run that has been stopped or has failed; without it, such a run stays as it is.
    pub resume: bool,
    /// Cancelled when the process should end: the last committed iteration is written down first.
    pub stop: CancellationToken,
}

impl CoordinatorOptions {
    /// Takes up a run as it stands, and works until it is over.
    pub fn new(
        config: RunConfig,
        run_dir: PathBuf,
        listen: SocketAddr,
        admission: Admission,
    ) -> Self {
        Self {
            config,
            run_dir,
            listen,
            admission,
            resume: false,
            stop: CancellationToken::new(),
        }
    }
}

/// Why a coordinator could not start or go on.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The configuration is wrong.
    #[error(transparent)]
    Config(#[from] ConfigErrors),
    /// The dataset is wrong.
    #[error(transparent)]
    Dataset(#[from] DatasetError),
    /// The record can't be used or written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Checkpoints can't be put away or brought back.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// The certificate can't be made or used.
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    /// The run folder can't be written.
    #[error("{path}: {source}")]
    Io {
        /// What could not be written.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Two coordinators must not share a run.
    #[error(
        "{path} is locked: another coordinator is running in this folder; stop it, or give another run_dir"
    )]
    Locked {
        /// The lock's file.
        path: PathBuf,
    },
    /// The address can't be listened on.
    #[error(
        "cannot listen on {address}: {source}; give another --listen, or port 0 for a free one"
    )]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The services ended by themselves.
    #[error("the coordinator's services ended: {0}")]
    Services(String),
    /// The run can't go on, or could not before and nobody said that it should try again.
    #[error("the run failed after iteration {iteration}: {reason}")]
    Run {
        /// The last committed iteration.
        iteration: Iteration,
        /// Why.
        reason: String,
    },
    /// The process was told to end before the run was taken up.
    #[error("told to end before the run was taken up")]
    Interrupted,
    /// The run was stopped before, and nobody said that it should go on.
    #[error("the run was stopped after iteration {iteration}")]
    Stopped {
        /// The last committed iteration.
        iteration: Iteration,
    },
}

impl ServeError {
    /// Whether another start would fail the same way, so that whoever keeps a coordinator alive should not try. A run
    /// that failed is none of these: the record says so, and how it can go on.
    pub fn is_lasting(&self) -> bool {
        match self {
            Self::Store(error) => error.is_lasting(),
            Self::Archive(error) => error.is_lasting(),
            Self::Credentials(error) => error.is_lasting(),
            Self::Io { source, .. } => is_lasting(source),
            Self::Config(_) | Self::Dataset(_) | Self::Locked { .. } | Self::Listen { .. } => true,
            Self::Services(_) | Self::Run { .. } | Self::Stopped { .. } | Self::Interrupted => {
                false
            }
        }
    }
}

/// A running coordinator.
pub struct Coordinator {
    address: SocketAddr,
    outcome: oneshot::Receiver<ShellEnd>,
    services: AbortOnDrop<Result<(), tonic::transport::Error>>,
    _renewal: Option<AbortOnDrop<()>>,
    stop_services: oneshot::Sender<()>,
    keeper: Keeper,
    handle: Handle,
    stop: CancellationToken,
    folder: RunFolder,
}

/// A coordinator that is dropped stops listening, and its shell ends with the last connection.
struct AbortOnDrop<T>(JoinHandle<T>);

impl<T> Drop for AbortOnDrop<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Coordinator {
    /// Starts everything, and leaves the address in the run folder.
    ///
    /// # Errors
    /// If configuration, dataset, record, folder or address can't be used, or the run's checkpoints are
    /// elsewhere and can't be brought back.
    pub async fn start(options: CoordinatorOptions) -> Result<Self, ServeError> {
        let CoordinatorOptions {
            config,
            run_dir,
            listen,
            admission,
            resume,
            stop,
        } = options;
        config.validate()?;
        let access = admission.access()?;
        let rows = retouch_dataset::read(Path::new(&config.dataset.path), Split::Train)?;
        fs::create_dir_all(&run_dir).map_err(|source| io_error(&run_dir, source))?;
        let folder = RunFolder::new(run_dir);
        let lock = lock(folder.record_lock()).await?;
        let rows_hash = dataset::hash(&rows);
        bring_back(&config, &rows_hash, &folder).await?;
        let (mut store, record) = Store::open(folder.path(), &config, &rows_hash)?;
        let record = initial::begin(&config, &folder, &mut store, record)?;
        if !resume {
            has_ended(&record)?;
        }
        let keeper = Keeper::start(KeeperOptions {
            config: &config,
            dataset: &rows_hash,
            folder: &folder,
            last: record.checkpoint.committed.iteration,
            complete: store.complete_checkpoints(),
        })?;
        let listener = bind(listen, &folder.coordinator_address()).await?;
        let address = listener.local_addr().map_err(|source| ServeError::Listen {
            address: listen,
            source,
        })?;
        let (run, config_toml) = (config.name.clone(), config.to_toml());
        write(&folder.config(), &config_toml)?;
        let charts = Charts::new(folder.events(), config_toml.clone());
        let lookup = Lookup::new(folder.path().to_owned(), rows.clone().into());
        let (shell, handle) = Shell::new(
            |now_ms| Machine::new(config, rows, record, now_ms),
            store,
            charts,
        )?;
        let outcome = run_shell(shell, lock);
        let renewal = admission.authority().map(|authority| {
            let renewal = renewal::renew(authority, folder.clone(), renewal::DAILY);
            AbortOnDrop(tokio::spawn(renewal))
        });
        let services = Services {
            handle: handle.clone(),
            access,
            authority: admission.authority(),
            roster: Roster::default(),
            run,
            config_toml,
            lookup,
        };
        let (stop_services, stopped) = oneshot::channel();
        let services = AbortOnDrop(tokio::spawn(
            serve_until(services, listener, stopped).await?,
        ));
        // Last: whoever finds the address finds everything else ready.
        write(&folder.coordinator_address(), &address.to_string())?;
        Ok(Self {
            address,
            outcome,
            services,
            _renewal: renewal,
            stop_services,
            keeper,
            handle,
            stop,
            folder,
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Waits until the run is over, or suspended because the process is to end.
    ///
    /// # Errors
    /// If the record can't be written, or the run could not go on.
    pub async fn wait(self) -> Result<Outcome, ServeError> {
        let Self {
            outcome,
            mut services,
            stop_services,
            keeper,
            handle,
            stop,
            folder,
            ..
        } = self;
        let ended = || ServeError::Services("nobody is left to serve".into());
        let outcome = tokio::select! {
            outcome = outcome => outcome.map_err(|_| ended())??.ok_or_else(ended)?,
            stopped = &mut services.0 => return Err(ServeError::Services(format!("{stopped:?}"))),
            () = suspend(handle, stop) => unreachable!("it waits for the end as well"),
        };
        drop(stop_services);
        // Last answers are still on their way; who keeps a connection open is not waited for.
        let _ = tokio::time::timeout(SHUTDOWN_GRACE, &mut services.0).await;
        match outcome.suspended {
            // What is not away by then is put away by the next coordinator.
            true => drop(tokio::time::timeout(SUSPENDED_GRACE, keeper.finish()).await),
            false => keeper.finish().await,
        }
        // The last of all: snapshots and keeper have read the record until now.
        let folded = tokio::task::spawn_blocking(move || store::fold(&folder)).await;
        if let Ok(Err(error)) = folded {
            tracing::warn!(%error, "run.db-wal stays beside the record: copy both, or neither");
        }
        match outcome.failure {
            Some(reason) => Err(ServeError::Run {
                iteration: outcome.iteration,
                reason,
            }),
            None => Ok(outcome),
        }
    }
}

/// Has the machine write down what it has once the process is to end; never returns.
async fn suspend(handle: Handle, stop: CancellationToken) {
    stop.cancelled().await;
    // A full queue is emptied within moments, and a shell that is gone has ended already.
    while handle.send(Request::Suspend) == Err(Refused::Busy) {
        tokio::time::sleep(LOCK_PAUSE).await;
    }
    std::future::pending().await
}

/// Refuses a run that has ended before its last iteration: whoever restarts processes does not decide that it goes on.
fn has_ended(record: &Record) -> Result<(), ServeError> {
    let iteration = record.committed.iteration;
    match &record.standing {
        Standing::Failed { reason } => Err(ServeError::Run {
            iteration,
            reason: reason.clone(),
        }),
        Standing::Stopped => Err(ServeError::Stopped { iteration }),
        _ => Ok(()),
    }
}

type ShellEnd = Result<Option<Outcome>, StoreError>;

/// Gives the shell its thread, and with it the lock of what it writes.
fn run_shell(shell: Shell, lock: fs::File) -> oneshot::Receiver<ShellEnd> {
    let (sender, outcome) = oneshot::channel();
    thread::spawn(move || {
        let ended = shell.run();
        drop(lock);
        // Nobody may be waiting for it any more.
        drop(sender.send(ended));
    });
    outcome
}

async fn serve_until(
    services: Services,
    listener: TcpListener,
    stopped: oneshot::Receiver<()>,
) -> Result<impl Future<Output = Result<(), tonic::transport::Error>>, CredentialsError> {
    // Whoever has a join token has no certificate yet.
    let mut server = services
        .access
        .server(Strangers::MayEnroll)?
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT));
    let router = server.add_routes(services.routes().await);
    // An answer is a few small packets: none may wait until the one before is acknowledged (40 ms).
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    Ok(router.serve_with_incoming_shutdown(incoming, async { drop(stopped.await) }))
}

/// Runs a coordinator from start to end.
///
/// # Errors
/// As [`Coordinator::start`] and [`Coordinator::wait`].
pub async fn serve(options: CoordinatorOptions) -> Result<Outcome, ServeError> {
    let stop = options.stop.clone();
    // A checkpoint that is brought back from elsewhere may take minutes.
    let coordinator = tokio::select! {
        biased;
        started = Coordinator::start(options) => started?,
        () = stop.cancelled() => return Err(ServeError::Interrupted),
    };
    coordinator.wait().await
}

/// Held as long as the record may be written. A coordinator that was just ended has a moment to let
/// go of it; one that was killed has let go already.
async fn lock(path: PathBuf) -> Result<fs::File, ServeError> {
    let file = fs::File::create(&path).map_err(|source| io_error(&path, source))?;
    for _ in 0..LOCK_ATTEMPTS {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(fs::TryLockError::WouldBlock) => tokio::time::sleep(LOCK_PAUSE).await,
            Err(fs::TryLockError::Error(source)) => return Err(io_error(&path, source)),
        }
    }
    Err(ServeError::Locked { path })
}

/// Workers come back to the address they know, so a restarted coordinator takes it again if it can.
async fn bind(listen: SocketAddr, last_address: &Path) -> Result<TcpListener, ServeError> {
    let last = fs::read_to_string(last_address).unwrap_or_default();
    let last = last
        .trim()
        .parse::<SocketAddr>()
        .ok()
        .filter(|last| last.ip() == listen.ip());
    if listen.port() == 0
        && let Some(last) = last
        && let Ok(listener) = TcpListener::bind(last).await
    {
        return Ok(listener);
    }
    let bound = TcpListener::bind(listen).await;
    bound.map_err(|source| ServeError::Listen {
        address: listen,
        source,
    })
}

fn write(path: &Path, text: &str) -> Result<(), ServeError> {
    write_whole(path, text, PUBLIC).map_err(|source| io_error(path, source))
}

fn io_error(path: &Path, source: io::Error) -> ServeError {
    ServeError::Io {
        path: path.to_owned(),
        source,
    }
}
