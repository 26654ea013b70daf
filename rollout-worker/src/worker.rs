//! The role: assignments in, blobs out.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use image::{ImageFormat, RgbImage};
use retouch_models::{
    device,
    editor::{EditorSource, SizeRule, Sources},
    memory,
};
use retouch_proto::{
    BlobRef,
    config::RunConfig,
    limits::SLOTS_MAX,
    task::{RolloutResult, RolloutTask, Task, TaskFailure, TaskOutcome},
    worker::Role,
};
use retouch_worker::{
    AtWork, Hosted, Identity, RoleError, Session, Work, WorkerOptions, blobs::Retention,
    session::Blobs,
};
use tokio::task::spawn_blocking;
use tonic::service::Routes;

use crate::{
    sampler::{GroupInput, GroupOutput, SampleError, Sampler, Version},
    source,
};

/// Groups at a time: while one is on the device, the next one's source and adapter
/// are fetched and the last one's images compressed.
const SLOTS: u32 = 2;

/// How long a worker without groups keeps its encoders on a GPU, where others may want the memory. Between the groups
/// of an iteration it is never without one.
const REST_AFTER: Duration = Duration::from_secs(10);

/// Joins a run and samples groups until it ends, with an editor from `editors`.
///
/// # Errors
///
/// If the coordinator refuses or stays away, or the model can't be loaded.
pub async fn run(options: WorkerOptions, editors: EditorSource) -> Result<(), RoleError> {
    const { assert!(SLOTS as usize <= SLOTS_MAX) };
    let identity = Identity::new(Role::Rollout, SLOTS);
    let session = Session::connect(options, identity, Routes::default()).await?;
    let load = move |config: &RunConfig, device: &str| {
        Sampler::load(config, device::parse(device)?, &editors)
            .map_err(|error| format!("the base model cannot be loaded: {error}").into())
    };
    let sampler = session.load(load).await?;
    let config = session.config();
    tracing::info!(model = config.model.path, "the base model is loaded");
    let rollouts = Arc::new(Rollouts::new(config, session.blobs(), sampler.clone()));
    let at_work = rollouts.at_work.clone();
    let rest = |sampler: &mut Sampler| match memory::is_host(sampler.device()) {
        true => {}
        false => sampler.rest(),
    };
    let resting = at_work.rest_after(REST_AFTER, || sampler.run(rest));
    tokio::select! {
        ended = session.serve(move |work| rollouts.clone().answer(work)) => Ok(ended?),
        never = resting => match never {},
    }
}

/// What every rollout needs.
#[derive(Debug)]
struct Rollouts {
    dataset: PathBuf,
    rule: SizeRule,
    blobs: Blobs,
    sampler: Hosted<Sampler>,
    at_work: AtWork,
}

impl Rollouts {
    fn new(config: &RunConfig, blobs: Blobs, sampler: Hosted<Sampler>) -> Self {
        Self {
            dataset: PathBuf::from(&config.dataset.path),
            rule: source::size_rule(&config.model),
            blobs,
            sampler,
            at_work: AtWork::default(),
        }
    }

    async fn answer(self: Arc<Self>, work: Work) -> Result<TaskOutcome, TaskFailure> {
        let _busy = self.at_work.begin();
        let Task::Rollout(task) = work.assignment.task else {
            let reason = "a rollout worker was given another role's task";
            return Err(TaskFailure::lasting(reason));
        };
        let sampled = work.cancel.run_until_cancelled(self.sample(task)).await;
        sampled
            .unwrap_or_else(|| Err(TaskFailure::retryable("cancelled")))
            .map(TaskOutcome::Rollout)
    }

    async fn sample(&self, task: RolloutTask) -> Result<RolloutResult, TaskFailure> {
        let sources = self.load_sources(&task).await?;
        let version = self.fetch_version(&task).await?;
        let input = GroupInput {
            group: task.group,
            prompt: task.prompt.clone(),
            paths: task.images.clone(),
            sources: sources.clone(),
            version,
            group_size: task.group_size as usize,
        };
        let sampled = self
            .sampler
            .run(move |sampler| sampler.sample_group(&input))
            .await?;
        let output = sampled.map_err(|error| match error {
            // The editor gives the same error for the same input everywhere.
            SampleError::Edit(_) => TaskFailure::lasting(error),
            _ => TaskFailure::retryable(error),
        })?;
        self.publish(&task, sources, output).await
    }

    async fn load_sources(&self, task: &RolloutTask) -> Result<Arc<Sources>, TaskFailure> {
        let (folder, paths, rule) = (self.dataset.clone(), task.images.clone(), self.rule);
        let loaded = spawn_blocking(move || source::load(&folder, &paths, rule))
            .await
            .map_err(TaskFailure::lasting)?;
        loaded.map(Arc::new).map_err(|error| TaskFailure {
            retryable: error.is_retryable(),
            ..TaskFailure::lasting(error)
        })
    }

    async fn fetch_version(&self, task: &RolloutTask) -> Result<Option<Version>, TaskFailure> {
        let Some(blob) = &task.version else {
            return Ok(None);
        };
        let retention = Retention::Until(task.group.iteration);
        Ok(Some(Version {
            hash: blob.hash,
            bytes: self.blobs.fetch(blob, retention).await?,
        }))
    }

    async fn publish(
        &self,
        task: &RolloutTask,
        sources: Arc<Sources>,
        output: GroupOutput,
    ) -> Result<RolloutResult, TaskFailure> {
        let GroupOutput {
            x0,
            condition,
            edits,
            mut timings,
        } = output;
        let begin = Instant::now();
        let pngs = spawn_blocking(move || (pngs(&sources.images), pngs(&edits))).await;
        let (sources_png, edits_png) = pngs.map_err(TaskFailure::retryable)?;
        timings.decode_s += begin.elapsed().as_secs_f64();
        Ok(RolloutResult {
            group: task.group,
            version: task.version.as_ref().map(|version| version.hash),
            x0: self.put(task, x0).await?,
            condition: self.put(task, condition).await?,
            sources_png: self.put_all(task, sources_png).await?,
            edits_png: self.put_all(task, edits_png).await?,
            timings,
        })
    }

    async fn put_all(
        &self,
        task: &RolloutTask,
        pngs: Vec<Vec<u8>>,
    ) -> Result<Vec<BlobRef>, TaskFailure> {
        let mut blobs = Vec::with_capacity(pngs.len());
        for png in pngs {
            blobs.push(self.put(task, png).await?);
        }
        Ok(blobs)
    }

    async fn put(&self, task: &RolloutTask, bytes: Vec<u8>) -> Result<BlobRef, TaskFailure> {
        let retention = Retention::Until(task.group.iteration);
        Ok(self.blobs.put(bytes.into(), retention).await?)
    }
}

fn pngs(images: &[RgbImage]) -> Vec<Vec<u8>> {
    images.iter().map(png).collect()
}

fn png(image: &RgbImage) -> Vec<u8> {
    let mut bytes = std::io::Cursor::new(Vec::new());
    image
        .write_to(&mut bytes, ImageFormat::Png)
        .expect("writing to memory does not fail");
    bytes.into_inner()
}
