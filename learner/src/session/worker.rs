//! The role: sealed iterations in, the next state and version out.

use std::{
    collections::VecDeque,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use retouch_credentials::{CredentialsError, Principal};
use retouch_models::{device, editor::EditorSource, weights::LoadError};
use retouch_proto::{
    ContentHash,
    config::{LearnerConfig, RunConfig},
    task::{Task, TaskFailure, TaskOutcome, TrainResult, TrainTask},
    worker::Role,
};
use retouch_worker::{
    DeviceError, Hosted, Identity, Session, SessionError, Work, WorkerOptions,
    blobs::Retention,
    process::{self, ProcessError},
    session::Blobs,
};
use thiserror::Error;
use tonic::service::Routes;

use super::{
    inputs::{self, TrainInputs},
    mint::mint,
    ranks::{AtWork, Ranks, Way},
    trainer::{TrainError, Trained, Trainer},
};
use crate::collective::{CollectiveError, Deadlines, Listener};

/// Results whose state and version are kept: a rank that comes back may need the last
/// committed ones while the next are made.
const RESULTS_KEPT: usize = 3;
/// No byte of a message that has begun may take longer.
const STALL: Duration = Duration::from_secs(10);

/// Why a learner ended otherwise than with its run.
#[derive(Debug, Error)]
pub enum LearnerError {
    /// The coordinator refused or stayed away.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// The certificate can't be used.
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    /// The process can't be set up.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// Other ranks can't reach this one.
    #[error(transparent)]
    Collective(#[from] CollectiveError),
    /// The address under which other ranks reach this one.
    #[error("advertised host {host:?} cannot be resolved: {reason}")]
    Advertise {
        /// The host.
        host: String,
        /// Why.
        reason: String,
    },
    /// The device is not known.
    #[error(transparent)]
    Device(#[from] device::DeviceError),
    /// The device thread failed.
    #[error(transparent)]
    DeviceThread(#[from] DeviceError),
    /// The base model can't be loaded.
    #[error("the base model cannot be loaded: {0}")]
    Load(#[from] LoadError),
}

/// Checks that this build and machine have what a learner is to compute with.
///
/// # Errors
///
/// What is missing: the feature, the driver or the device.
pub fn check_device(config: &LearnerConfig) -> Result<(), LearnerError> {
    Way::of(config, &config.device)?;
    device::parse(&config.device)?;
    Ok(())
}

/// Joins a run and trains until it ends, with a transformer from `editors`.
///
/// # Errors
///
/// If the coordinator refuses or stays away, or the model can't be loaded.
pub async fn run(options: WorkerOptions, editors: EditorSource) -> Result<(), LearnerError> {
    let handshake = options.access.handshake(Principal::Worker(Role::Learner))?;
    let listener = Listener::bind(SocketAddr::new(options.listen.ip(), 0), handshake)?;
    let collective_address = Some(advertised(&options, listener.address()).await?);
    let identity = Identity {
        role: Role::Learner,
        slots: 1,
        collective_address,
    };
    let (device, thread) = (options.device.clone(), options.device_thread.clone());
    let session = Session::connect(options, identity, Routes::default()).await?;
    let config = session.config().clone();
    process::set_compute_threads(config.cluster.threads_per_worker)?;
    let device = device.as_deref().unwrap_or(&config.learner.device);
    let way = Way::of(&config.learner, device)?;
    let device = device::parse(device)?;
    let at_work = AtWork::default();
    let shards = config.learner.gradient_shards as usize;
    let ranks = Ranks::new(listener, deadlines(&config), shards, way, at_work.clone());
    let (loading, run_dir) = (config.clone(), session.run_dir().clone());
    let load = move || Trainer::load(&loading, device, &editors, run_dir, ranks);
    let trainer = thread.host(load).await??;
    tracing::info!(model = config.model.path, "the base model is loaded");
    let training = Arc::new(Training {
        blobs: session.blobs(),
        trainer,
        at_work,
        shards,
        made: Mutex::default(),
    });
    Ok(session
        .serve(move |work| training.clone().answer(work))
        .await?)
}

/// The listener's address with the host that others know.
async fn advertised(
    options: &WorkerOptions,
    bound: SocketAddr,
) -> Result<SocketAddr, LearnerError> {
    let Some(host) = &options.advertise else {
        return Ok(bound);
    };
    if let Ok(ip) = host.parse::<IpAddr>() {
        return Ok(SocketAddr::new(ip, bound.port()));
    }
    let error = |reason: String| LearnerError::Advertise {
        host: host.clone(),
        reason,
    };
    let mut found = tokio::net::lookup_host((host.as_str(), bound.port()))
        .await
        .map_err(|e| error(e.to_string()))?;
    found
        .next()
        .ok_or_else(|| error("it has no address".to_owned()))
}

fn deadlines(config: &RunConfig) -> Deadlines {
    // Other ranks may fetch and compute for as long as their lease lasts.
    let lease = Duration::from_secs(config.cluster.lease_s);
    Deadlines {
        join: lease,
        arrival: lease,
        stall: STALL,
    }
}

/// What every training task needs.
#[derive(Debug)]
struct Training {
    blobs: Blobs,
    trainer: Hosted<Trainer>,
    at_work: AtWork,
    shards: usize,
    /// States and versions that were made last, oldest first.
    made: Mutex<VecDeque<[ContentHash; 2]>>,
}

impl Training {
    async fn answer(self: Arc<Self>, work: Work) -> TaskOutcome {
        let lease = work.assignment.lease;
        let task = match work.assignment.task.clone() {
            Task::Train(task) => task,
            Task::Mint(task) => {
                return mint(task)
                    .await
                    .map_or_else(TaskOutcome::Failed, TaskOutcome::Mint);
            }
            Task::Rollout(_) | Task::Score(_) => {
                let reason = "a learner was given another role's task";
                return TaskOutcome::Failed(failure(reason, false));
            }
        };
        let training = tokio::spawn(self.clone().train(work.clone(), task));
        tokio::select! {
            outcome = training => outcome.unwrap_or_else(|error| Err(failure(error, true))),
            () = work.cancel.cancelled() => {
                // The device thread ends its waits by itself and takes the next task.
                self.at_work.abort(lease);
                Err(failure("cancelled", true))
            }
        }
        .map_or_else(TaskOutcome::Failed, TaskOutcome::Train)
    }

    async fn train(
        self: Arc<Self>,
        work: Work,
        task: TrainTask,
    ) -> Result<TrainResult, TaskFailure> {
        let begin = Instant::now();
        let (iteration, epoch) = (task.iteration, task.collective.epoch);
        let inputs = inputs::fetch(&self.blobs, task, self.shards).await?;
        let fetch_s = begin.elapsed().as_secs_f64();
        let mut trained = self.on_device(work, inputs).await?;
        trained.metrics.fetch_s = fetch_s;
        let publishing = Instant::now();
        let state = self.blobs.put(trained.state, Retention::Pinned).await;
        let version = self.blobs.put(trained.version, Retention::Pinned).await;
        let (state, version) = (
            state.map_err(|e| failure(e, true))?,
            version.map_err(|e| failure(e, true))?,
        );
        trained.metrics.publish_s += publishing.elapsed().as_secs_f64();
        self.keep([state.hash, version.hash]);
        let (ema_adapter, metrics) = (trained.ema_adapter, trained.metrics);
        Ok(TrainResult {
            iteration,
            epoch,
            state,
            version,
            ema_adapter,
            metrics,
        })
    }

    async fn on_device(&self, work: Work, inputs: TrainInputs) -> Result<Trained, TaskFailure> {
        let lease = work.assignment.lease;
        let trained = self
            .trainer
            .run(move |trainer| trainer.train(lease, &inputs, &work.cancel))
            .await;
        trained
            .map_err(|error| failure(error, true))?
            .map_err(|error: TrainError| {
                let retryable = error.is_retryable();
                failure(error, retryable)
            })
    }

    /// Keeps the last few results' blobs and drops those before.
    fn keep(&self, result: [ContentHash; 2]) {
        let mut made = self.made.lock().unwrap_or_else(|e| e.into_inner());
        made.retain(|earlier| *earlier != result);
        made.push_back(result);
        while made.len() > RESULTS_KEPT {
            let dropped = made.pop_front().into_iter().flatten();
            let is_kept = |hash: &ContentHash| made.iter().flatten().any(|kept| kept == hash);
            dropped
                .filter(|hash| !is_kept(hash))
                .for_each(|hash| self.blobs.release(&hash));
        }
    }
}

pub(super) fn failure(reason: impl ToString, retryable: bool) -> TaskFailure {
    TaskFailure {
        reason: reason.to_string(),
        lost_blobs: Vec::new(),
        retryable,
    }
}
