//! The role: assignments in, blobs out.

use std::{path::PathBuf, sync::Arc, time::Instant};

use bytes::Bytes;
use image::{ImageFormat, RgbImage};
use retouch_models::{
    device,
    editor::{EditorSource, SizeRule},
    weights::LoadError,
};
use retouch_proto::{
    BlobRef, ContentHash,
    config::RunConfig,
    limits::SLOTS_MAX,
    task::{RolloutResult, RolloutTask, Task, TaskFailure, TaskOutcome},
    worker::Role,
};
use retouch_worker::{
    DeviceError, Hosted, Identity, Session, SessionError, Work, WorkerOptions,
    blobs::Retention,
    process::{self, ProcessError},
    session::Blobs,
};
use thiserror::Error;
use tokio::task::spawn_blocking;
use tonic::service::Routes;

use crate::{
    sampler::{GroupInput, GroupOutput, SampleError, Sampler, Version},
    source,
};

/// Groups at a time: while one is on the device, the next one's source and adapter
/// are fetched and the last one's images compressed.
const SLOTS: u32 = 2;

/// Why a rollout worker ended otherwise than with its run.
#[derive(Debug, Error)]
pub enum RolloutError {
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
    /// The base model can't be loaded.
    #[error("the base model cannot be loaded: {0}")]
    Load(#[from] LoadError),
}

/// Joins a run and samples groups until it ends, with an editor from `editors`.
///
/// # Errors
///
/// If the coordinator refuses or stays away, or the model can't be loaded.
pub async fn run(options: WorkerOptions, editors: EditorSource) -> Result<(), RolloutError> {
    const { assert!(SLOTS as usize <= SLOTS_MAX) };
    let identity = Identity {
        role: Role::Rollout,
        slots: SLOTS,
        collective_address: None,
    };
    let (device, thread) = (options.device.clone(), options.device_thread.clone());
    let session = Session::connect(options, identity, Routes::default()).await?;
    let config = session.config().clone();
    process::set_compute_threads(config.cluster.threads_per_worker)?;
    let device = device::parse(device.as_deref().unwrap_or(&config.model.device))?;
    let loading = config.clone();
    let sampler = thread
        .host(move || Sampler::load(&loading, device, &editors))
        .await??;
    tracing::info!(model = config.model.path, "the base model is loaded");
    let rollouts = Arc::new(Rollouts::new(&config, session.blobs(), sampler));
    Ok(session
        .serve(move |work| rollouts.clone().answer(work))
        .await?)
}

/// What every rollout needs.
#[derive(Debug)]
struct Rollouts {
    dataset: PathBuf,
    rule: SizeRule,
    blobs: Blobs,
    sampler: Hosted<Sampler>,
}

impl Rollouts {
    fn new(config: &RunConfig, blobs: Blobs, sampler: Hosted<Sampler>) -> Self {
        Self {
            dataset: PathBuf::from(&config.dataset.path),
            rule: source::size_rule(&config.model),
            blobs,
            sampler,
        }
    }

    async fn answer(self: Arc<Self>, work: Work) -> TaskOutcome {
        let Task::Rollout(task) = work.assignment.task else {
            return TaskOutcome::Failed(failure(
                "a rollout worker was given another role's task",
                false,
            ));
        };
        tokio::select! {
            result = self.sample(task) => result.map_or_else(TaskOutcome::Failed, TaskOutcome::Rollout),
            () = work.cancel.cancelled() => TaskOutcome::Failed(failure("cancelled", true)),
        }
    }

    async fn sample(&self, task: RolloutTask) -> Result<RolloutResult, TaskFailure> {
        let source = self.load_source(&task).await?;
        let version = self.fetch_version(&task).await?;
        let input = GroupInput {
            group: task.group,
            prompt: task.prompt.clone(),
            path: task.image.clone(),
            source: source.clone(),
            version,
            group_size: task.group_size as usize,
        };
        let output = self
            .sampler
            .run(move |sampler| sampler.sample_group(&input))
            .await;
        let output = output
            .map_err(|error| failure(error, true))?
            .map_err(|error| {
                let retryable = !matches!(error, SampleError::Edit(_));
                failure(error, retryable)
            })?;
        self.publish(&task, source, output).await
    }

    async fn load_source(&self, task: &RolloutTask) -> Result<Arc<RgbImage>, TaskFailure> {
        let (folder, path, rule) = (self.dataset.clone(), task.image.clone(), self.rule);
        let loaded = spawn_blocking(move || source::load(&folder, &path, rule)).await;
        let loaded = loaded.map_err(|error| failure(error, false))?;
        loaded.map(Arc::new).map_err(|error| {
            let retryable = error.is_retryable();
            failure(error, retryable)
        })
    }

    async fn fetch_version(&self, task: &RolloutTask) -> Result<Option<Version>, TaskFailure> {
        let Some(blob) = &task.version else {
            return Ok(None);
        };
        let bytes = self
            .blobs
            .fetch(blob, Retention::Until(task.group.iteration))
            .await?;
        Ok(Some(Version {
            hash: blob.hash,
            bytes,
        }))
    }

    async fn publish(
        &self,
        task: &RolloutTask,
        source: Arc<RgbImage>,
        output: GroupOutput,
    ) -> Result<RolloutResult, TaskFailure> {
        let GroupOutput {
            x0,
            condition,
            edits,
            mut timings,
        } = output;
        let begin = Instant::now();
        let pngs =
            spawn_blocking(move || (png(&source), edits.iter().map(png).collect::<Vec<_>>())).await;
        let (source_png, edits_png) = pngs.map_err(|error| failure(error, true))?;
        timings.decode_s += begin.elapsed().as_secs_f64();
        let mut edits = Vec::with_capacity(edits_png.len());
        for edit in edits_png {
            edits.push(self.put(task, edit).await?);
        }
        Ok(RolloutResult {
            group: task.group,
            version: task
                .version
                .as_ref()
                .map(|version: &BlobRef| -> ContentHash { version.hash }),
            x0: self.put(task, x0).await?,
            condition: self.put(task, condition).await?,
            source_png: self.put(task, source_png).await?,
            edits_png: edits,
            timings,
        })
    }

    async fn put(&self, task: &RolloutTask, bytes: Vec<u8>) -> Result<BlobRef, TaskFailure> {
        let stored = self
            .blobs
            .put(Bytes::from(bytes), Retention::Until(task.group.iteration))
            .await;
        stored.map_err(|error| failure(error, true))
    }
}

fn failure(reason: impl ToString, retryable: bool) -> TaskFailure {
    TaskFailure {
        reason: reason.to_string(),
        lost_blobs: Vec::new(),
        retryable,
    }
}

fn png(image: &RgbImage) -> Vec<u8> {
    let mut bytes = std::io::Cursor::new(Vec::new());
    image
        .write_to(&mut bytes, ImageFormat::Png)
        .expect("writing to memory does not fail");
    bytes.into_inner()
}
