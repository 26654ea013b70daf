//! What a role sees of its life with the coordinator.

use std::{io, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use bytes::Bytes;
use retouch_credentials::CredentialsError;
use retouch_proto::{
    BlobAddress, BlobRef, ContentHash, LeaseId, RunId,
    config::{ConfigErrors, RunConfig},
    limits::SLOTS_MAX,
    task::{TaskFailure, TaskOutcome},
    worker::Registration,
};
use thiserror::Error;
use tokio::{
    sync::mpsc,
    task::{JoinHandle, JoinSet},
};
use tonic::service::Routes;

use super::{
    books::{Books, Work},
    coordinator_grpc::CoordinatorCalls,
    link::{self, Backoff, Command, Link, Pace},
    options::{Identity, WorkerOptions},
};
use crate::{
    blobs::{
        BlobClient, BlobClientOptions, BlobStore, BlobStoreError, BlobStoreOptions, Retention,
        blobs_grpc::BlobService,
    },
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
    /// Somebody wants this process to be started again.
    #[error("told to end and to be started again")]
    Restart,
    /// The process was told to end before it had joined.
    #[error("stopped before it had joined")]
    Stopped,
    /// The loop that talks to the coordinator broke.
    #[error("the session broke: {0}")]
    Broken(#[from] tokio::task::JoinError),
}

/// A worker that has joined a run.
#[derive(Debug)]
pub struct Session {
    config: Arc<RunConfig>,
    run: RunId,
    run_dir: PathBuf,
    blobs: BlobClient,
    address: BlobAddress,
    work: mpsc::Receiver<Work>,
    commands: mpsc::Sender<Command>,
    link: JoinHandle<Result<(), SessionError>>,
}

/// A session's blobs, for use in tasks.
#[derive(Clone, Debug)]
pub struct Blobs {
    client: BlobClient,
    address: BlobAddress,
}

impl Session {
    /// Opens the worker's port and joins the run, waiting for a coordinator that is
    /// not there yet. The worker is reported as loading until [`Self::ready`].
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
        let (listener, address) =
            server::bind(options.listen)
                .await
                .map_err(|source| SessionError::Listen {
                    address: options.listen,
                    source,
                })?;
        let store = BlobStore::open(BlobStoreOptions {
            folder: options.data_dir.join("blobs"),
            memory_bytes_max: options.memory_bytes_max,
            disk_bytes_max: options.disk_bytes_max,
        })?;
        let access = &options.access;
        let service = BlobService::new(store.clone(), access.clone());
        let stop = options.stop.child_token();
        server::spawn(listener, access, service, routes, stop)?;
        let mut calls = CoordinatorCalls::new(options.coordinator.clone(), access.clone())?;
        let address = advertised(&options, address);
        let mut books = Books::new(registration(&options, identity, address.clone()));
        let registered = link::register(
            &mut calls,
            &mut books,
            &store,
            Backoff::first(options.give_up_after),
            &options.stop,
        )
        .await?;
        let config = RunConfig::from_toml(&registered.config_toml)?;
        let config = Arc::new(options.localized(config));
        tracing::info!(run = %registered.run, generation = %registered.generation, role = %identity.role, "joined");

        let run_dir = options
            .run_dir
            .clone()
            .unwrap_or_else(|| PathBuf::from(&config.run_dir));
        let blobs = BlobClient::new(
            store.clone(),
            BlobClientOptions {
                access: options.access.clone(),
                run_folder: Some(run_dir.clone()),
                own_address: Some(address.clone()),
                limits: options.fetch,
            },
        );
        let (work_sender, work) = mpsc::channel(SLOTS_MAX);
        let (commands, command_receiver) = mpsc::channel(SLOTS_MAX);
        let link = Link {
            books,
            calls,
            store,
            blobs: blobs.clone(),
            commands: command_receiver,
            work: work_sender,
            pace: pace(&options, &config),
            stop: options.stop.clone(),
        };
        let link = tokio::spawn(link.run());
        Ok(Self {
            config,
            run: registered.run,
            run_dir,
            blobs,
            address,
            work,
            commands,
            link,
        })
    }

    /// The resolved run file.
    pub fn config(&self) -> &Arc<RunConfig> {
        &self.config
    }

    /// The run that was joined.
    pub fn run(&self) -> &RunId {
        &self.run
    }

    /// The run folder as this process sees it.
    pub fn run_dir(&self) -> &PathBuf {
        &self.run_dir
    }

    /// The blobs of this worker.
    pub fn blobs(&self) -> Blobs {
        Blobs {
            client: self.blobs.clone(),
            address: self.address.clone(),
        }
    }

    /// Takes work from now on: models are loaded. Every assignment becomes one call
    /// of `handle`; a panic in it is a failure that may be tried again. Returns when
    /// the run has ended or the process was told to stop.
    ///
    /// # Errors
    ///
    /// If the coordinator refuses or stays away.
    pub async fn serve<F>(mut self, mut handle: impl FnMut(Work) -> F) -> Result<(), SessionError>
    where
        F: Future<Output = TaskOutcome> + Send + 'static,
    {
        let _ = self.commands.send(Command::Ready).await;
        let mut tasks: JoinSet<()> = JoinSet::new();
        while let Some(work) = self.work.recv().await {
            let lease = work.assignment.lease;
            let task = tokio::spawn(handle(work));
            tasks.spawn(report_end(lease, task, self.commands.clone()));
            while tasks.try_join_next().is_some() {}
        }
        self.link.await?
    }
}

async fn report_end(
    lease: LeaseId,
    task: JoinHandle<TaskOutcome>,
    commands: mpsc::Sender<Command>,
) {
    let outcome = task
        .await
        .unwrap_or_else(|error| failed(format!("the task broke: {error}")));
    if let TaskOutcome::Failed(failure) = &outcome {
        tracing::warn!(%lease, reason = failure.reason, "a task failed");
    }
    let _ = commands.send(Command::Finished(lease, outcome)).await;
}

/// A failure that another attempt may not meet.
pub(super) fn failed(reason: String) -> TaskOutcome {
    TaskOutcome::Failed(TaskFailure {
        reason,
        lost_blobs: Vec::new(),
        retryable: true,
    })
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

impl Blobs {
    /// Stores bytes and gives the reference under which others can fetch them.
    ///
    /// # Errors
    ///
    /// If they can't be kept.
    pub async fn put(&self, bytes: Bytes, retention: Retention) -> Result<BlobRef, BlobStoreError> {
        let (store, size_bytes) = (self.store().clone(), bytes.len() as u64);
        let stored = tokio::task::spawn_blocking(move || store.put(bytes, retention)).await;
        let hash = stored.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))?;
        Ok(BlobRef {
            hash,
            size_bytes,
            owners: vec![self.address.clone()],
        })
    }

    /// The blob's bytes, from here or from an owner.
    ///
    /// # Errors
    ///
    /// A failure of the task that needs it, naming the blob if it is lost.
    pub async fn fetch(&self, blob: &BlobRef, retention: Retention) -> Result<Bytes, TaskFailure> {
        self.client
            .fetch(blob, retention)
            .await
            .map_err(|error| TaskFailure {
                reason: error.to_string(),
                lost_blobs: error.lost_blob().into_iter().collect(),
                retryable: true,
            })
    }

    /// Fetches several blobs at once, in order.
    ///
    /// # Errors
    ///
    /// A failure that names all blobs which are lost.
    pub async fn fetch_all(
        &self,
        blobs: &[BlobRef],
        retention: Retention,
    ) -> Result<Vec<Bytes>, TaskFailure> {
        let mut transfers = JoinSet::new();
        for (index, blob) in blobs.iter().cloned().enumerate() {
            let this = self.clone();
            transfers.spawn(async move { (index, this.fetch(&blob, retention).await) });
        }
        let mut results = transfers.join_all().await;
        results.sort_by_key(|(index, _)| *index);
        let (mut fetched, mut failed): (Vec<Bytes>, Option<TaskFailure>) = (Vec::new(), None);
        for (_, result) in results {
            match (result, &mut failed) {
                (Ok(bytes), _) => fetched.push(bytes),
                (Err(failure), None) => failed = Some(failure),
                (Err(failure), Some(first)) => first.lost_blobs.extend(failure.lost_blobs),
            }
        }
        failed.map_or(Ok(fetched), Err)
    }

    /// Drops a blob.
    pub fn release(&self, hash: &ContentHash) {
        self.store().release(hash);
    }

    /// The store behind.
    pub fn store(&self) -> &BlobStore {
        self.client.store()
    }
}
