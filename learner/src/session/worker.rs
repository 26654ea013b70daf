//! The role: sealed iterations in, the next state and version out.

use std::{
    collections::VecDeque,
    fs,
    net::{IpAddr, SocketAddr},
    path::Path,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use retouch_credentials::Principal;
use retouch_models::{device, editor::EditorSource};
use retouch_proto::{
    ContentHash, Iteration, RunFolder,
    config::{DeviceName, LearnerConfig, RunConfig},
    run_folder::CheckpointFile,
    task::{Task, TaskFailure, TaskOutcome, TrainResult, TrainTask},
    worker::Role,
};
use retouch_worker::{
    Hosted, Identity, RoleError, Session, Work, WorkerOptions, blobs::Retention, session::Blobs,
};
use tonic::service::Routes;

use super::{
    inputs::{self, TrainInputs},
    mint::mint,
    ranks::{AtWork, Ranks, Way},
    trainer::{Trained, Trainer},
};
use crate::collective::{CollectiveError, Deadlines, Listener};

/// States that are kept: a rank that comes back may need the last committed one while the next is made.
const STATES_KEPT: usize = 3;
/// No byte of a message that has begun may take longer.
const STALL: Duration = Duration::from_secs(10);

/// Checks that this build and machine have what a learner is to compute with.
///
/// # Errors
///
/// What is missing: the feature, the driver or the device.
pub fn check_device(config: &LearnerConfig) -> Result<(), RoleError> {
    let device = config.device.first();
    Way::of(config, device).map_err(collective)?;
    device::open(device).map_err(|error| RoleError::Load(error.into()))?;
    Ok(())
}

fn collective(error: CollectiveError) -> RoleError {
    match error.is_lasting() {
        true => RoleError::Load(error.into()),
        false => RoleError::Collective(error.into()),
    }
}

/// Joins a run and trains until it ends, with a transformer from `editors`.
///
/// # Errors
///
/// If the coordinator refuses or stays away, or the model can't be loaded.
pub async fn run(options: WorkerOptions, editors: EditorSource) -> Result<(), RoleError> {
    // Bound before the run is joined: the registration says where the other ranks reach this one.
    let handshake = options.access.handshake(Principal::Worker(Role::Learner))?;
    let listen = SocketAddr::new(options.listen.ip(), 0);
    let listener = Listener::bind(listen, handshake).map_err(collective)?;
    let address = advertised(&options, listener.address()).await?;
    let identity = Identity {
        collective_address: Some(address),
        ..Identity::new(Role::Learner, 1)
    };
    let session = Session::connect(options, identity, Routes::default()).await?;
    let config = session.config().clone();
    let device = session.device().parse::<DeviceName>();
    let device = device.map_err(|error| RoleError::Load(error.into()))?;
    let way = Way::of(&config.learner, device).map_err(collective)?;
    let shards = config.learner.gradient_shards as usize;
    let at_work = AtWork::default();
    let ranks = Ranks::new(listener, deadlines(&config), shards, way, at_work.clone());
    let run_dir = session.run_dir().clone();
    let first_policy = RunFolder::new(&run_dir).initial(CheckpointFile::Version);
    let load = move |config: &RunConfig, device: &str| {
        Trainer::load(config, device::parse(device)?, &editors, run_dir, ranks)
            .map_err(|error| format!("the base model cannot be loaded: {error}").into())
    };
    let trainer = session.load(load).await?;
    tracing::info!(model = config.model.path, "the base model is loaded");
    let blobs = session.blobs();
    if !config.lora.init.is_empty() {
        offer(
            &blobs,
            &first_policy,
            Iteration(1 + config.rollout.staleness_max),
        )
        .await;
    }
    let training = Arc::new(Training {
        blobs,
        trainer,
        at_work,
        shards,
        made: Mutex::new(Made::new(config.rollout.staleness_max)),
    });
    Ok(session
        .serve(move |work| training.clone().answer(work))
        .await?)
}

/// Serves the policy that the run starts from to workers without its folder, until iteration `last` is committed.
async fn offer(blobs: &Blobs, path: &Path, last: Iteration) {
    let problem = match fs::read(path) {
        Ok(bytes) => {
            let kept = blobs.put(bytes.into(), Retention::Until(last)).await;
            kept.err().map(|error| error.to_string())
        }
        Err(error) => Some(error.to_string()),
    };
    // Workers that share the folder need nobody who serves it.
    if let Some(problem) = problem {
        tracing::warn!(path = %path.display(), problem, "the first policy is not served");
    }
}

/// The listener's address with the host that others know.
async fn advertised(options: &WorkerOptions, bound: SocketAddr) -> Result<SocketAddr, RoleError> {
    let Some(host) = &options.advertise else {
        return Ok(bound);
    };
    if let Ok(ip) = host.parse::<IpAddr>() {
        return Ok(SocketAddr::new(ip, bound.port()));
    }
    let error = |reason: String| RoleError::Advertise {
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
    made: Mutex<Made>,
}

/// What this rank made last and keeps, oldest first.
#[derive(Debug)]
struct Made {
    states: VecDeque<ContentHash>,
    /// Policies sample later iterations than the next (`rollout.staleness_max`).
    versions: VecDeque<ContentHash>,
    versions_kept: usize,
}

impl Made {
    fn new(staleness: u32) -> Self {
        Self {
            states: VecDeque::new(),
            versions: VecDeque::new(),
            versions_kept: STATES_KEPT.max(staleness as usize + 2),
        }
    }

    /// Notes a result; gives what need not be kept any more.
    fn add(&mut self, state: ContentHash, version: ContentHash) -> Vec<ContentHash> {
        let mut dropped = Vec::new();
        let kept = [
            (&mut self.states, state, STATES_KEPT),
            (&mut self.versions, version, self.versions_kept),
        ];
        for (hashes, hash, most) in kept {
            // The same may be made again: it is the newest then.
            hashes.retain(|earlier| *earlier != hash);
            hashes.push_back(hash);
            let surplus = hashes.len().saturating_sub(most);
            dropped.extend(hashes.drain(..surplus));
        }
        dropped
    }
}

impl Training {
    async fn answer(self: Arc<Self>, work: Work) -> Result<TaskOutcome, TaskFailure> {
        let task = match work.assignment.task.clone() {
            Task::Train(task) => task,
            Task::Mint(task) => return mint(task).await.map(TaskOutcome::Mint),
            Task::Rollout(_) | Task::Score(_) => {
                let reason = "a learner was given another role's task";
                return Err(TaskFailure::lasting(reason));
            }
        };
        // A task of its own, which cancelling does not drop: what waits on the device thread for
        // other ranks has to be ended from there.
        let training = tokio::spawn(self.clone().train(work.clone(), task));
        let result = tokio::select! {
            trained = training => trained.unwrap_or_else(|error| Err(TaskFailure::retryable(error))),
            () = work.cancel.cancelled() => {
                // The device thread ends its waits by itself and takes the next task.
                self.at_work.abort(work.assignment.lease);
                Err(TaskFailure::retryable("cancelled"))
            }
        };
        result.map(TaskOutcome::Train)
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
        let (state, version) = (state?, version?);
        trained.metrics.publish_s += publishing.elapsed().as_secs_f64();
        self.keep(state.hash, version.hash);
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
            .await?;
        trained.map_err(|error| TaskFailure {
            retryable: error.is_retryable(),
            disk_full: error.is_disk_full(),
            ..TaskFailure::lasting(error)
        })
    }

    /// Keeps the last few results' blobs and drops those before.
    fn keep(&self, state: ContentHash, version: ContentHash) {
        let mut made = self.made.lock().unwrap_or_else(|e| e.into_inner());
        let dropped = made.add(state, version);
        dropped.iter().for_each(|hash| self.blobs.release(hash));
    }
}
