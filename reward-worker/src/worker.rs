//! The role: groups in, scores out.

use std::{
    sync::{Arc, OnceLock},
    time::Instant,
};

use retouch_models::device;
use retouch_proto::{
    task::{ScoreResult, ScoreTask, Task, TaskFailure, TaskOutcome},
    worker::Role,
};
use retouch_worker::{
    DeviceError, Hosted, Identity, Session, SessionError, Work, WorkerOptions,
    blobs::Retention,
    process::{self, ProcessError},
    session::Blobs,
};
use thiserror::Error;

use crate::{
    judge_grpc::{self, LoadedScorer},
    scorer::{Group, Scorer, ScorerError},
};

/// Groups at a time: while one is judged, the next one's images are fetched.
const SLOTS: u32 = 2;

/// Why a reward worker ended otherwise than with its run.
#[derive(Debug, Error)]
pub enum RewardError {
    /// The coordinator refused or stayed away.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// The process can't be set up.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// The device is not known.
    #[error(transparent)]
    Device(#[from] device::DeviceError),
    /// The device thread failed.
    #[error(transparent)]
    DeviceThread(#[from] DeviceError),
    /// The judges can't be loaded.
    #[error(transparent)]
    Load(#[from] ScorerError),
}

/// Joins a run and scores groups until it ends.
///
/// # Errors
///
/// If the coordinator refuses or stays away, or the judges can't be loaded.
pub async fn run(options: WorkerOptions) -> Result<(), RewardError> {
    let identity = Identity {
        role: Role::Reward,
        slots: SLOTS,
        collective_address: None,
    };
    let (device, thread) = (options.device.clone(), options.device_thread.clone());
    let loaded: LoadedScorer = Arc::new(OnceLock::new());
    let routes = judge_grpc::routes(loaded.clone(), options.access.clone());
    let session = Session::connect(options, identity, routes).await?;
    let config = session.config().clone();
    process::set_compute_threads(config.cluster.threads_per_worker)?;
    let device = device::parse(device.as_deref().unwrap_or(&config.reward.device))?;
    let loading = config.clone();
    let scorer = thread
        .host(move || Scorer::load(&loading.reward, &device))
        .await??;
    let scorer = loaded.get_or_init(|| scorer).clone();
    tracing::info!(terms = config.reward.terms.len(), "the judges are loaded");
    let scores = Arc::new(Scores {
        blobs: session.blobs(),
        scorer,
    });
    Ok(session
        .serve(move |work| scores.clone().answer(work))
        .await?)
}

/// What every scoring needs.
#[derive(Debug)]
struct Scores {
    blobs: Blobs,
    scorer: Hosted<Scorer>,
}

impl Scores {
    async fn answer(self: Arc<Self>, work: Work) -> TaskOutcome {
        let Task::Score(task) = work.assignment.task else {
            return TaskOutcome::Failed(failure(
                "a reward worker was given another role's task",
                false,
            ));
        };
        tokio::select! {
            result = self.score(task) => result.map_or_else(TaskOutcome::Failed, TaskOutcome::Score),
            () = work.cancel.cancelled() => TaskOutcome::Failed(failure("cancelled", true)),
        }
    }

    async fn score(&self, task: ScoreTask) -> Result<ScoreResult, TaskFailure> {
        let begin = Instant::now();
        let edits = task.edits_png.iter().map(|blob| blob.hash).collect();
        let group_id = task.group;
        let group = self.fetch_group(task).await?;
        let scored = self.scorer.run(move |scorer| scorer.score(&group)).await;
        let scored = scored.map_err(|error| failure(error, true))?;
        let scores = scored.map_err(|error| {
            let retryable = error.is_retryable();
            failure(error, retryable)
        })?;
        Ok(ScoreResult {
            group: group_id,
            edits,
            scores,
            scoring_s: begin.elapsed().as_secs_f64(),
        })
    }

    async fn fetch_group(&self, task: ScoreTask) -> Result<Group, TaskFailure> {
        let retention = Retention::Until(task.group.iteration);
        let source = self.blobs.fetch(&task.source_png, retention).await?;
        let edits = self.blobs.fetch_all(&task.edits_png, retention).await?;
        let decode = move || Group::decode(task.prompt, task.requirement, &source, &edits);
        let group = tokio::task::spawn_blocking(decode).await;
        group
            .map_err(|error| failure(error, false))?
            .map_err(|error| failure(error, false))
    }
}

fn failure(reason: impl ToString, retryable: bool) -> TaskFailure {
    TaskFailure {
        reason: reason.to_string(),
        lost_blobs: Vec::new(),
        retryable,
    }
}
