//! A worker against a coordinator that a test plays.

mod coordinator_grpc;
mod leaving;
mod pace;

use std::time::Duration;

use bytes::Bytes;
use coordinator_grpc::FakeCoordinator;
use retouch_proto::{
    BlobRef, ContentHash, Generation, GroupId, Iteration, LeaseId, RunId, WorkerId,
    config::{DeviceName, RunConfig},
    task::{Assignment, ScoreResult, ScoreTask, Task, TaskOutcome},
    worker::{Directive, Registered, Registration, Report, ReportReply, Role, WorkerState},
};
use tempfile::TempDir;
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinHandle,
};
use tonic::{Status, service::Routes};

use super::*;
use crate::blobs::Retention;

/// Ends a task.
type End = oneshot::Sender<TaskOutcome>;

/// A worker whose tasks a test ends, and the coordinator that it has joined.
struct Scene {
    coordinator: FakeCoordinator,
    serving: JoinHandle<Result<(), SessionError>>,
    tasks: mpsc::UnboundedReceiver<(Work, End)>,
    blobs: Blobs,
    options: WorkerOptions,
    _folder: TempDir,
}

impl Scene {
    /// A worker that has joined, with a task for each of these leases.
    async fn working_on(leases: &[u64]) -> Self {
        Self::with(leases, registered(1), |_| {}).await
    }

    /// As [`Self::working_on`], with this run file and these changes to the usual options.
    async fn with(
        leases: &[u64],
        registered: Registered,
        change: impl FnOnce(&mut WorkerOptions),
    ) -> Self {
        let mut coordinator = FakeCoordinator::start("127.0.0.1:0").await;
        let folder = tempfile::tempdir().unwrap();
        let mut options = options(&coordinator, &folder);
        change(&mut options);
        let (session, _) = connect(&mut coordinator, &options, registered).await;
        let blobs = session.blobs();
        let (sender, tasks) = mpsc::unbounded_channel();
        let serving = tokio::spawn(session.serve(move |work| {
            let (end, ended) = oneshot::channel();
            sender.send((work, end)).unwrap();
            async move { Ok(ended.await.expect("the test ends it")) }
        }));
        if !leases.is_empty() {
            give(&mut coordinator, leases).await;
        }
        Self {
            coordinator,
            serving,
            tasks,
            blobs,
            options,
            _folder: folder,
        }
    }

    async fn next_task(&mut self) -> (Work, End) {
        let wait = tokio::time::timeout(Duration::from_secs(20), self.tasks.recv());
        wait.await.expect("a task comes").expect("the worker lives")
    }

    /// Waits for a report for which the condition holds, and answers it.
    async fn answer(&mut self, condition: impl Fn(&Report) -> bool, reply: ReportReply) -> Report {
        self.coordinator.report_with(condition).await.answer(reply)
    }
}

fn has_result(report: &Report) -> bool {
    !report.results.is_empty()
}

/// Joins, with two slots, a coordinator that takes the worker; also gives what it registered with.
async fn connect(
    coordinator: &mut FakeCoordinator,
    options: &WorkerOptions,
    registered: Registered,
) -> (Session, Registration) {
    let connecting = tokio::spawn(join(options.clone()));
    let registration = coordinator.admit(Ok(registered)).await;
    (connecting.await.unwrap().unwrap(), registration)
}

fn join(options: WorkerOptions) -> impl Future<Output = Result<Session, SessionError>> {
    Session::connect(options, Identity::new(Role::Reward, 2), Routes::default())
}

fn options(coordinator: &FakeCoordinator, folder: &TempDir) -> WorkerOptions {
    let worker = WorkerId::new("reward-0").unwrap();
    let folder = folder.path().to_owned();
    let options = WorkerOptions::new(
        coordinator.address.to_string(),
        retouch_credentials::Access::Open,
        worker,
        folder,
    );
    WorkerOptions {
        give_up_after: Duration::from_secs(20),
        ..options
    }
}

fn registered(generation: u64) -> Registered {
    registered_at(generation, Duration::from_millis(20))
}

fn registered_at(generation: u64, heartbeat: Duration) -> Registered {
    let mut config = RunConfig::default();
    config.cluster.heartbeat_ms = heartbeat.as_millis() as u64;
    config.cluster.report_wait_ms_max = 200;
    Registered {
        generation: Generation(generation),
        run: RunId::new("test").unwrap(),
        config_toml: config.to_toml(),
    }
}

fn directed(directive: Directive) -> ReportReply {
    ReportReply {
        directive,
        ..nothing()
    }
}

fn nothing() -> ReportReply {
    ReportReply {
        assignments: Vec::new(),
        cancel: Vec::new(),
        prefetch: Vec::new(),
        directive: Directive::Continue,
        committed: Iteration(0),
    }
}

fn assignment(lease: u64) -> Assignment {
    let source_png = BlobRef {
        hash: ContentHash([0; 32]),
        size_bytes: 0,
        owners: Vec::new(),
    };
    let task = ScoreTask {
        group: GroupId {
            iteration: Iteration(1),
            index: lease as u32,
        },
        prompt: "add a dot".into(),
        requirement: String::new(),
        sources_png: vec![source_png],
        edits_png: Vec::new(),
    };
    Assignment {
        lease: LeaseId(lease),
        lease_ms: 60_000,
        task: Task::Score(task),
    }
}

fn outcome() -> TaskOutcome {
    let group = GroupId {
        iteration: Iteration(1),
        index: 7,
    };
    TaskOutcome::Score(ScoreResult {
        group,
        edits: Vec::new(),
        scores: Vec::new(),
        unscored: Vec::new(),
        scoring_s: 0.0,
    })
}

/// Gives an idle worker a task for each of these leases.
async fn give(coordinator: &mut FakeCoordinator, leases: &[u64]) {
    let open = coordinator
        .report_with(|report| report.slots_free == 2)
        .await;
    open.answer(ReportReply {
        assignments: leases.iter().copied().map(assignment).collect(),
        ..nothing()
    });
}

#[tokio::test]
async fn loading_is_told_until_the_role_serves() {
    let mut coordinator = FakeCoordinator::start("127.0.0.1:0").await;
    let folder = tempfile::tempdir().unwrap();
    let options = options(&coordinator, &folder);
    let (session, registration) = connect(&mut coordinator, &options, registered(5)).await;
    assert_eq!((registration.role, registration.slots), (Role::Reward, 2));
    assert_eq!(session.config().cluster.heartbeat_ms, 20);
    let report = coordinator.report_with(|_| true).await.answer(nothing());
    assert_eq!(report.generation, Generation(5));
    assert_eq!((report.state, report.slots_free), (WorkerState::Loading, 0));
    let _serving = tokio::spawn(session.serve(|_| async { Ok(outcome()) }));
    let is_ready = |report: &Report| report.state == WorkerState::Ready;
    let report = coordinator.report_with(is_ready).await.report;
    assert_eq!(report.slots_free, 2);
}

#[tokio::test]
async fn a_role_is_made_on_its_device_and_its_error_is_lasting() {
    let mut coordinator = FakeCoordinator::start("127.0.0.1:0").await;
    let folder = tempfile::tempdir().unwrap();
    let mut options = options(&coordinator, &folder);
    let mut registered = registered(1);
    let mut config = RunConfig::from_toml(&registered.config_toml).unwrap();
    config.reward.device = DeviceName::Cuda(3).into();
    registered.config_toml = config.to_toml();
    let (session, _) = connect(&mut coordinator, &options, registered.clone()).await;
    let made = session.load(|config, device| Ok((config.reward.dtype, device.to_owned())));
    let made = made.await.unwrap().run(|made| made.clone()).await.unwrap();
    assert_eq!(made, (config.reward.dtype, "cuda:3".to_owned()));
    let error = session.load::<()>(|_, _| Err("no weights".into())).await;
    let error = error.unwrap_err();
    assert_eq!(error.to_string(), "no weights");
    assert!(error.is_lasting() && !error.is_restart());
    drop(session);

    options.device = Some("cpu".into());
    options.data_dir = folder.path().join("again");
    options.check_room = |_, role, device| Err(format!("{device} has no room for {role}").into());
    let (session, registration) = connect(&mut coordinator, &options, registered).await;
    assert_eq!((session.device(), &registration.device[..]), ("cpu", "cpu"));
    let unmade = session.load::<()>(|_, _| panic!("there is no room")).await;
    let error = unmade.unwrap_err();
    assert!(
        error.to_string().starts_with("cpu has no room for r"),
        "{error}"
    );
    assert!(error.is_lasting());
}

#[tokio::test]
async fn results_are_repeated_until_a_report_is_answered() {
    let mut scene = Scene::working_on(&[7]).await;
    let (work, end) = scene.next_task().await;
    assert_eq!(work.assignment.lease, LeaseId(7));
    // The same lease again is no new task.
    let again = ReportReply {
        assignments: vec![assignment(7)],
        ..nothing()
    };
    let is_running = |report: &Report| report.running == [LeaseId(7)];
    let report = scene.answer(is_running, again).await;
    assert_eq!(report.slots_free, 1);
    end.send(outcome()).unwrap();
    let unanswered = scene.coordinator.report_with(has_result).await;
    drop(unanswered);
    let report = scene.answer(|_| true, nothing()).await;
    let results: Vec<&TaskOutcome> = report.results.iter().map(|r| &r.outcome).collect();
    assert_eq!((results, report.slots_free), (vec![&outcome()], 2));
    let report = scene.answer(|report| report.sequence > 1, nothing()).await;
    assert!(report.results.is_empty());
    assert!(scene.tasks.is_empty());
}

#[tokio::test]
async fn cancelled_work_frees_its_slot_and_has_no_result() {
    let mut scene = Scene::working_on(&[7]).await;
    let (work, end) = scene.next_task().await;
    let cancel = ReportReply {
        cancel: vec![LeaseId(7)],
        ..nothing()
    };
    scene.answer(|report| report.slots_free == 1, cancel).await;
    work.cancel.cancelled().await;
    end.send(outcome()).unwrap();
    let is_idle = |report: &Report| report.running.is_empty();
    let report = scene.answer(is_idle, nothing()).await;
    assert!(report.results.is_empty());
}

#[tokio::test]
async fn blob_changes_are_told() {
    let mut scene = Scene::working_on(&[]).await;
    let bytes = Bytes::from_static(b"latent");
    let put = scene.blobs.put(bytes, Retention::Until(Iteration(3)));
    let hash = put.await.unwrap().hash;
    let committed = ReportReply {
        committed: Iteration(3),
        ..nothing()
    };
    let came = |report: &Report| !report.blobs_added.is_empty();
    let report = scene.answer(came, committed).await;
    assert_eq!(report.blobs_added, [hash]);
    let went = |report: &Report| !report.blobs_dropped.is_empty();
    let report = scene.answer(went, nothing()).await;
    assert_eq!(
        (report.blobs_dropped, report.blobs_added),
        (vec![hash], vec![])
    );
}

#[tokio::test]
async fn new_generation_tells_what_is_held_and_run() {
    let mut scene = Scene::working_on(&[7, 8]).await;
    let bytes = Bytes::from_static(b"latent");
    let blob = scene.blobs.put(bytes, Retention::Pinned).await.unwrap();
    let (_first, end) = scene.next_task().await;
    let (second, _open) = scene.next_task().await;
    end.send(outcome()).unwrap();
    let reregister = directed(Directive::Reregister);
    scene.answer(has_result, reregister).await;
    let registration = scene.coordinator.admit(Ok(registered(2))).await;
    assert_eq!(registration.holds, [blob.hash]);
    let leases: Vec<LeaseId> = registration.running.iter().map(|task| task.lease).collect();
    let running = second.assignment.lease;
    assert_eq!(leases, [running, LeaseId(15 - running.0)]);
    let report = scene.answer(|_| true, nothing()).await;
    assert_eq!(
        (report.generation, report.results.len()),
        (Generation(2), 1)
    );
}

#[tokio::test]
async fn coordinator_may_be_away_for_a_while() {
    let mut scene = Scene::working_on(&[7]).await;
    let (_work, end) = scene.next_task().await;
    let address = scene.coordinator.address.to_string();
    scene.coordinator.kill().await;
    end.send(outcome()).unwrap();
    let mut coordinator = FakeCoordinator::start(&address).await;
    let report = coordinator.report_with(has_result).await.answer(nothing());
    assert_eq!(report.results[0].lease, LeaseId(7));
}

#[tokio::test]
async fn end_of_the_run_cancels_work_and_ends_serving() {
    let mut scene = Scene::working_on(&[7]).await;
    let (work, _end) = scene.next_task().await;
    // A report that the worker gave up for a newer one may be answered in vain.
    while !work.cancel.is_cancelled() {
        tokio::select! {
            () = work.cancel.cancelled() => {}
            open = scene.coordinator.report_with(|_| true) => {
                open.answer(directed(Directive::Shutdown));
            }
        }
    }
    scene.serving.await.unwrap().unwrap();
}

#[tokio::test]
async fn refusal_and_absence_end_with_the_reason() {
    let mut coordinator = FakeCoordinator::start("127.0.0.1:0").await;
    let folder = tempfile::tempdir().unwrap();
    let mut options = options(&coordinator, &folder);
    let connecting = tokio::spawn(join(options.clone()));
    coordinator
        .admit(Err(Status::unauthenticated("another run's token")))
        .await;
    let error = connecting.await.unwrap().unwrap_err();
    assert!(
        matches!(&error, SessionError::Refused(reason) if reason.contains("another run's token")),
        "{error}"
    );

    coordinator.kill().await;
    options.give_up_after = Duration::from_millis(100);
    options.data_dir = folder.path().join("again");
    let error = join(options).await.unwrap_err();
    assert!(matches!(error, SessionError::Gone { .. }), "{error}");
}

#[tokio::test]
async fn panic_in_a_task_is_a_failure_that_names_its_place_and_may_be_tried_again() {
    crate::panics::report();
    let mut coordinator = FakeCoordinator::start("127.0.0.1:0").await;
    let folder = tempfile::tempdir().unwrap();
    let options = options(&coordinator, &folder);
    let (session, _) = connect(&mut coordinator, &options, registered(1)).await;
    let _serving = tokio::spawn(session.serve(|_| async { panic!("index out of bounds") }));
    give(&mut coordinator, &[7]).await;
    let report = coordinator.report_with(has_result).await.report;
    let TaskOutcome::Failed(failure) = &report.results[0].outcome else {
        panic!("expected a failure")
    };
    let reason = &failure.reason;
    assert!(failure.retryable && reason.contains("panicked"), "{reason}");
    let place = format!("index out of bounds (at {}:", file!());
    assert!(reason.contains(&place), "{reason}");
}

#[tokio::test]
async fn a_task_that_meets_a_full_disk_says_so() {
    let mut coordinator = FakeCoordinator::start("127.0.0.1:0").await;
    let folder = tempfile::tempdir().unwrap();
    let mut options = options(&coordinator, &folder);
    options.memory_bytes_max = 0;
    let (session, _) = connect(&mut coordinator, &options, registered(1)).await;
    let bytes = Bytes::from_static(b"latent");
    let partial = format!("blobs/{}.part", ContentHash::of(&bytes));
    std::os::unix::fs::symlink("/dev/full", folder.path().join(partial)).unwrap();
    let blobs = session.blobs();
    let _serving = tokio::spawn(session.serve(move |_| {
        let (blobs, bytes) = (blobs.clone(), bytes.clone());
        async move {
            blobs.put(bytes, Retention::Pinned).await?;
            Ok(outcome())
        }
    }));
    give(&mut coordinator, &[7]).await;
    let report = coordinator.report_with(has_result).await.report;
    let TaskOutcome::Failed(failure) = &report.results[0].outcome else {
        panic!("expected a failure")
    };
    let named = failure.reason.contains(&*folder.path().to_string_lossy());
    assert!(failure.disk_full && named, "{failure:?}");
}
