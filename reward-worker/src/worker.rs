//! The role: groups in, scores out.

use std::{
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use retouch_models::{device, memory};
use retouch_proto::{
    config::RunConfig,
    task::{ScoreResult, ScoreTask, Task, TaskFailure, TaskOutcome},
    worker::Role,
};
use retouch_worker::{
    AtWork, Hosted, Identity, RoleError, Session, Work, WorkerOptions, blobs::Retention,
    session::Blobs,
};

use crate::{
    judge_grpc::{self, LoadedScorer},
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
        let edits = task.edits_png.iter().map(|blob| blob.hash).collect();
        let group_id = task.group;
        let group = self.fetch_group(task).await?;
        let scored = self.scorer.run(move |scorer| scorer.score(&group)).await?;
        let Scored { scores, unscored } = scored.map_err(|error| TaskFailure {
            retryable: error.is_retryable(),
            ..TaskFailure::lasting(error)
        })?;
        Ok(ScoreResult {
            group: group_id,
            edits,
            scores,
            unscored,
            scoring_s: begin.elapsed().as_secs_f64(),
        })
    }

    async fn fetch_group(&self, task: ScoreTask) -> Result<Group, TaskFailure> {
        let retention = Retention::Until(task.group.iteration);
        let sources = self.blobs.fetch_all(&task.sources_png, retention).await?;
        let edits = self.blobs.fetch_all(&task.edits_png, retention).await?;
        let decode = move || Group::decode(task.prompt, task.requirement, &sources, &edits);
        let group = tokio::task::spawn_blocking(decode).await;
        group
            .map_err(TaskFailure::lasting)?
            .map_err(TaskFailure::lasting)
    }
}
