//! The role: groups in, scores out.

use std::{
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use bytes::Bytes;
use retouch_models::{device, memory};
use retouch_proto::{
    RunFolder,
    config::RunConfig,
    saved_group::GroupPictures,
    task::{ScoreResult, ScoreTask, Task, TaskFailure, TaskOutcome},
    worker::Role,
};
use retouch_worker::{
    AtWork, Hosted, Identity, RoleError, Session, Work, WorkerOptions, blobs::Retention,
    session::Blobs,
};

use crate::{
    judge_grpc::{self, LoadedScorer},
    keep::Keeper,
    scorer::{Group, Scored, Scorer},
};

/// Groups at a time: while one is judged, the next one's images are fetched.
const SLOTS: u32 = 2;

/// How long a worker without groups keeps its judges on a GPU, where others may want the memory.
const REST_AFTER: Duration = Duration::from_secs(10);

/// Joins a run and scores groups until it ends.
///
/// # Errors
///
/// If the coordinator refuses or stays away, or the judges can't be loaded.
pub async fn run(options: WorkerOptions) -> Result<(), RoleError> {
    // The service is on the port before there are judges, since the port is opened to join the run.
    let loaded: LoadedScorer = Arc::new(OnceLock::new());
    let routes = judge_grpc::routes(loaded.clone(), options.access.clone());
    let session = Session::connect(options, Identity::new(Role::Reward, SLOTS), routes).await?;
    let load = |config: &RunConfig, device: &str| {
        Ok(Scorer::load(&config.reward, &device::parse(device)?)?)
    };
    let scorer = session.load(load).await?;
    let scorer = loaded.get_or_init(|| scorer).clone();
    tracing::info!(
        terms = session.config().reward.terms.len(),
        "the judges are loaded"
    );
    let scores = Arc::new(Scores {
        blobs: session.blobs(),
        scorer: scorer.clone(),
        at_work: AtWork::default(),
        keeper: Keeper::new(
            RunFolder::new(session.run_dir()),
            session.config().samples.keep_groups,
        ),
    });
    let at_work = scores.at_work.clone();
    let rest = |scorer: &mut Scorer| match memory::is_host(scorer.device()) {
        true => {}
        false => scorer.rest(),
    };
    let resting = at_work.rest_after(REST_AFTER, || scorer.run(rest));
    tokio::select! {
        ended = session.serve(move |work| scores.clone().answer(work)) => Ok(ended?),
        never = resting => match never {},
    }
}

/// What every scoring needs.
#[derive(Debug)]
struct Scores {
    blobs: Blobs,
    scorer: Hosted<Scorer>,
    at_work: AtWork,
    keeper: Keeper,
}

impl Scores {
    async fn answer(self: Arc<Self>, work: Work) -> Result<TaskOutcome, TaskFailure> {
        let _busy = self.at_work.begin();
        let Task::Score(task) = work.assignment.task else {
            let reason = "a reward worker was given another role's task";
            return Err(TaskFailure::lasting(reason));
        };
        let scored = work.cancel.run_until_cancelled(self.score(task)).await;
        scored
            .unwrap_or_else(|| Err(TaskFailure::retryable("cancelled")))
            .map(TaskOutcome::Score)
    }

    async fn score(&self, task: ScoreTask) -> Result<ScoreResult, TaskFailure> {
        let begin = Instant::now();
        let pictures = self.fetch_pictures(&task).await?;
        let group = decode(&task, &pictures).await?;
        let scored = self.scorer.run(move |scorer| scorer.score(&group)).await?;
        let Scored { scores, unscored } = scored.map_err(|error| TaskFailure {
            retryable: error.is_retryable(),
            ..TaskFailure::lasting(error)
        })?;
        self.keeper.offer(&task, &scores, pictures);
        Ok(ScoreResult {
            group: task.group,
            edits: task.edits_png.iter().map(|blob| blob.hash).collect(),
            scores,
            unscored,
            scoring_s: begin.elapsed().as_secs_f64(),
        })
    }

    async fn fetch_pictures(&self, task: &ScoreTask) -> Result<GroupPictures<Bytes>, TaskFailure> {
        let retention = Retention::Until(task.group.iteration);
        Ok(GroupPictures {
            sources: self.blobs.fetch_all(&task.sources_png, retention).await?,
            candidates: self.blobs.fetch_all(&task.edits_png, retention).await?,
        })
    }
}

async fn decode(task: &ScoreTask, pictures: &GroupPictures<Bytes>) -> Result<Group, TaskFailure> {
    let (prompt, requirement) = (task.prompt.clone(), task.requirement.clone());
    let pictures = pictures.clone();
    let decode =
        move || Group::decode(prompt, requirement, &pictures.sources, &pictures.candidates);
    let group = tokio::task::spawn_blocking(decode).await;
    group
        .map_err(TaskFailure::lasting)?
        .map_err(TaskFailure::lasting)
}
