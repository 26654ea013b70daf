//! A worker against a coordinator that a test plays.

mod coordinator_grpc;

use std::time::Duration;

use bytes::Bytes;
use coordinator_grpc::FakeCoordinator;
use retouch_proto::{
    BlobRef, Generation, GroupId, Iteration, LeaseId, RunId, WorkerId,
    config::RunConfig,
    task::{Assignment, ScoreResult, ScoreTask, Task, TaskOutcome},
    worker::{Directive, Registered, ReportReply, Role, WorkerState},
};
use tempfile::TempDir;
use tokio::{sync::mpsc, task::JoinHandle};
use tonic::{Status, service::Routes};

use super::*;
use crate::blobs::Retention;

/// A worker whose tasks a test ends.
struct Worker {
    serving: JoinHandle<Result<(), SessionError>>,
    tasks: mpsc::UnboundedReceiver<(Work, tokio::sync::oneshot::Sender<TaskOutcome>)>,
    blobs: Blobs,
    options: WorkerOptions,
    _folder: TempDir,
}

impl Worker {
    async fn next_task(&mut self) -> (Work, tokio::sync::oneshot::Sender<TaskOutcome>) {
        let wait = tokio::time::timeout(Duration::from_secs(20), self.tasks.recv());
        wait.await.expect("a task comes").expect("the worker lives")
    }
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
    let mut config = RunConfig::default();
    config.cluster.heartbeat_ms = 20;
    config.cluster.report_wait_ms_max = 200;
    Registered {
        generation: Generation(generation),
        run: RunId::new("test").unwrap(),
        config_toml: config.to_toml(),
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
        hash: retouch_proto::ContentHash([0; 32]),
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
        source_png,
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

/// Connects, and serves with tasks that end when the test says so.
async fn joined(coordinator: &mut FakeCoordinator) -> Worker {
    let folder = tempfile::tempdir().unwrap();
    let options = options(coordinator, &folder);
    let identity = Identity {
        role: Role::Reward,
        slots: 2,
        collective_address: None,
    };
    let connecting = tokio::spawn(Session::connect(
        options.clone(),
        identity,
        Routes::default(),
    ));
    coordinator.admit(Ok(registered(1))).await;
    let session = connecting.await.unwrap().unwrap();
    let blobs = session.blobs();
    let (sender, tasks) = mpsc::unbounded_channel();
    let serving = tokio::spawn(session.serve(move |work| {
        let (end, ended) = tokio::sync::oneshot::channel();
        sender.send((work, end)).unwrap();
        async move { ended.await.expect("the test ends it") }
    }));
    Worker {
        serving,
        tasks,
        blobs,
        options,
        _folder: folder,
    }
}

#[tokio::test]
async fn loading_is_told_until_the_role_serves() {
    let mut coordinator = FakeCoordinator::start("127.0.0.1:0").await;
    let folder = tempfile::tempdir().unwrap();
    let identity = Identity {
        role: Role::Reward,
        slots: 2,
        collective_address: None,
    };
    let options = options(&coordinator, &folder);
    let connecting = tokio::spawn(Session::connect(options, identity, Routes::default()));
    let registration = coordinator.admit(Ok(registered(5))).await;
    assert_eq!((registration.role, registration.slots), (Role::Reward, 2));
    let session = connecting.await.unwrap().unwrap();
    assert_eq!(session.config().cluster.heartbeat_ms, 20);
    let open = coordinator.report_with(|_| true).await;
    assert_eq!(open.report.generation, Generation(5));
    let report = open.answer(nothing());
    assert_eq!((report.state, report.slots_free), (WorkerState::Loading, 0));
    let _serving = tokio::spawn(session.serve(|_| async { outcome() }));
    let report = coordinator
        .report_with(|report| report.state == WorkerState::Ready)
        .await
        .report;
    assert_eq!(report.slots_free, 2);
}

#[tokio::test]
async fn results_are_repeated_until_a_report_is_answered() {
    let mut coordinator = FakeCoordinator::start("127.0.0.1:0").await;
    let mut worker = joined(&mut coordinator).await;
    give(&mut coordinator, &[7]).await;
    let (work, end) = worker.next_task().await;
    assert_eq!(work.assignment.lease, LeaseId(7));
    let open = coordinator
        .report_with(|report| report.running == [LeaseId(7)])
        .await;
    // The same lease again is no new task.
    let report = open.answer(ReportReply {
        assignments: vec![assignment(7)],
        ..nothing()
    });
    assert_eq!(report.slots_free, 1);
    end.send(outcome()).unwrap();
    let unanswered = coordinator
        .report_with(|report| !report.results.is_empty())
        .await;
    drop(unanswered);
    let open = coordinator.report_with(|_| true).await;
    let report = open.answer(nothing());
    assert_eq!(report.results.len(), 1);
    assert_eq!(
        (&report.results[0].outcome, report.slots_free),
        (&outcome(), 2)
    );
    let report = coordinator
        .report_with(|report| report.sequence > 1)
        .await
        .answer(nothing());
    assert!(report.results.is_empty());
    assert!(worker.tasks.is_empty());
}

#[tokio::test]
async fn cancelled_work_frees_its_slot_and_has_no_result() {
    let mut coordinator = FakeCoordinator::start("127.0.0.1:0").await;
    let mut worker = joined(&mut coordinator).await;
    give(&mut coordinator, &[7]).await;
    let (work, end) = worker.next_task().await;
    let open = coordinator
        .report_with(|report| report.slots_free == 1)
        .await;
    open.answer(ReportReply {
        cancel: vec![LeaseId(7)],
        ..nothing()
    });
    work.cancel.cancelled().await;
    end.send(outcome()).unwrap();
    let report = coordinator
        .report_with(|report| report.running.is_empty())
        .await
        .report;
    assert!(report.results.is_empty());
}

#[tokio::test]
async fn blob_changes_are_told() {
    let mut coordinator = FakeCoordinator::start("127.0.0.1:0").await;
    let worker = joined(&mut coordinator).await;
    let until = Retention::Until(Iteration(3));
    let blob = worker
        .blobs
        .put(Bytes::from_static(b"latent"), until)
        .await
        .unwrap();
    let open = coordinator
        .report_with(|report| !report.blobs_added.is_empty())
        .await;
    let report = open.answer(ReportReply {
        committed: Iteration(3),
        ..nothing()
    });
    assert_eq!(report.blobs_added, [blob.hash]);
    let report = coordinator
        .report_with(|report| !report.blobs_dropped.is_empty())
        .await
        .report;
    assert_eq!(
        (report.blobs_dropped, report.blobs_added),
        (vec![blob.hash], vec![])
    );
}

#[tokio::test]
async fn new_generation_tells_what_is_held_and_run() {
    let mut coordinator = FakeCoordinator::start("127.0.0.1:0").await;
    let mut worker = joined(&mut coordinator).await;
    let blob = worker
        .blobs
        .put(Bytes::from_static(b"latent"), Retention::Pinned)
        .await
        .unwrap();
    give(&mut coordinator, &[7, 8]).await;
    let (_first, end) = worker.next_task().await;
    let (second, _open) = worker.next_task().await;
    end.send(outcome()).unwrap();
    let open = coordinator
        .report_with(|report| !report.results.is_empty())
        .await;
    open.answer(ReportReply {
        directive: Directive::Reregister,
        ..nothing()
    });
    let registration = coordinator.admit(Ok(registered(2))).await;
    assert_eq!(registration.holds, [blob.hash]);
    let leases: Vec<LeaseId> = registration
        .running
        .iter()
        .map(|running| running.lease)
        .collect();
    assert_eq!(
        leases,
        [
            second.assignment.lease,
            LeaseId(15 - second.assignment.lease.0)
        ]
    );
    let report = coordinator.report_with(|_| true).await.report;
    assert_eq!(
        (report.generation, report.results.len()),
        (Generation(2), 1)
    );
}

#[tokio::test]
async fn coordinator_may_be_away_for_a_while() {
    let mut coordinator = FakeCoordinator::start("127.0.0.1:0").await;
    let mut worker = joined(&mut coordinator).await;
    give(&mut coordinator, &[7]).await;
    let (_work, end) = worker.next_task().await;
    let address = coordinator.address.to_string();
    coordinator.kill().await;
    end.send(outcome()).unwrap();
    let mut coordinator = FakeCoordinator::start(&address).await;
    let report = coordinator
        .report_with(|report| !report.results.is_empty())
        .await
        .answer(nothing());
    assert_eq!(report.results[0].lease, LeaseId(7));
}

#[tokio::test]
async fn end_of_the_run_cancels_work_and_ends_serving() {
    let mut coordinator = FakeCoordinator::start("127.0.0.1:0").await;
    let mut worker = joined(&mut coordinator).await;
    give(&mut coordinator, &[7]).await;
    let (work, _end) = worker.next_task().await;
    // A report that the worker gave up for a newer one may be answered in vain.
    while !work.cancel.is_cancelled() {
        tokio::select! {
            () = work.cancel.cancelled() => {}
            open = coordinator.report_with(|_| true) => {
                open.answer(ReportReply {
                    directive: Directive::Shutdown,
                    ..nothing()
                });
            }
        }
    }
    worker.serving.await.unwrap().unwrap();
}

#[tokio::test]
async fn stopping_finishes_what_is_under_way() {
    let mut coordinator = FakeCoordinator::start("127.0.0.1:0").await;
    let mut worker = joined(&mut coordinator).await;
    give(&mut coordinator, &[7]).await;
    let (_work, end) = worker.next_task().await;
    worker.options.stop.cancel();
    let open = coordinator
        .report_with(|report| report.state == WorkerState::Leaving)
        .await;
    assert_eq!(open.answer(nothing()).slots_free, 0);
    end.send(outcome()).unwrap();
    let open = coordinator
        .report_with(|report| !report.results.is_empty())
        .await;
    open.answer(nothing());
    worker.serving.await.unwrap().unwrap();
}

#[tokio::test]
async fn refusal_and_absence_end_with_the_reason() {
    let mut coordinator = FakeCoordinator::start("127.0.0.1:0").await;
    let folder = tempfile::tempdir().unwrap();
    let identity = Identity {
        role: Role::Reward,
        slots: 1,
        collective_address: None,
    };
    let mut options = options(&coordinator, &folder);
    let connecting = tokio::spawn(Session::connect(
        options.clone(),
        identity,
        Routes::default(),
    ));
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
    let error = Session::connect(options, identity, Routes::default())
        .await
        .unwrap_err();
    assert!(matches!(error, SessionError::Gone { .. }), "{error}");
}

#[tokio::test]
async fn panic_in_a_task_is_a_failure_that_may_be_tried_again() {
    let mut coordinator = FakeCoordinator::start("127.0.0.1:0").await;
    let folder = tempfile::tempdir().unwrap();
    let identity = Identity {
        role: Role::Reward,
        slots: 1,
        collective_address: None,
    };
    let connecting = tokio::spawn(Session::connect(
        options(&coordinator, &folder),
        identity,
        Routes::default(),
    ));
    coordinator.admit(Ok(registered(1))).await;
    let session = connecting.await.unwrap().unwrap();
    let _serving = tokio::spawn(session.serve(|_| async { panic!("index out of bounds") }));
    let open = coordinator
        .report_with(|report| report.slots_free == 1)
        .await;
    open.answer(ReportReply {
        assignments: vec![assignment(7)],
        ..nothing()
    });
    let report = coordinator
        .report_with(|report| !report.results.is_empty())
        .await
        .report;
    let TaskOutcome::Failed(failure) = &report.results[0].outcome else {
        panic!("expected a failure")
    };
    assert!(
        failure.retryable && failure.reason.contains("panicked"),
        "{}",
        failure.reason
    );
}
