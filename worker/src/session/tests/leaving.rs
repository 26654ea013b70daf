//! A worker that is told to stop.

use std::time::Instant;

use retouch_proto::BlobAddress;

use super::*;
use crate::blobs::{BlobClient, BlobClientOptions, BlobStore, BlobStoreOptions};

const LONG: Duration = Duration::from_secs(60);
const SHORT: Duration = Duration::from_millis(300);

/// With time enough to see that it is not what ends the worker.
async fn scene(leases: &[u64]) -> Scene {
    Scene::with(leases, registered(1), |options| options.stop_grace = LONG).await
}

fn is_leaving(report: &Report) -> bool {
    report.state == WorkerState::Leaving
}

/// Ends what is expected to end by itself.
async fn ends_soon(scene: Scene) -> (Result<(), SessionError>, FakeCoordinator) {
    let Scene {
        serving,
        coordinator,
        ..
    } = scene;
    let served = tokio::time::timeout(LONG / 3, serving).await;
    (served.expect("the worker ends").unwrap(), coordinator)
}

#[tokio::test]
async fn what_is_under_way_is_finished_first() {
    let mut scene = scene(&[7]).await;
    let (_work, end) = scene.next_task().await;
    scene.options.stop.cancel();
    assert_eq!(scene.answer(is_leaving, nothing()).await.slots_free, 0);
    end.send(outcome()).unwrap();
    scene.answer(has_result, nothing()).await;
    scene
        .answer(is_leaving, directed(Directive::Shutdown))
        .await;
    ends_soon(scene).await.0.unwrap();
}

/// The coordinator may need what an idle worker alone holds: it has it written down first, also if both were told to
/// stop at the same moment.
#[tokio::test]
async fn an_idle_worker_stays_until_it_is_let_go_and_does_what_is_asked_meanwhile() {
    let mut scene = scene(&[]).await;
    scene.options.stop.cancel();
    for _ in 0..5 {
        assert!(is_leaving(&scene.answer(is_leaving, nothing()).await));
    }
    let write_down = ReportReply {
        assignments: vec![assignment(9)],
        ..nothing()
    };
    scene.answer(is_leaving, write_down).await;
    let (work, end) = scene.next_task().await;
    assert!(!work.cancel.is_cancelled());
    end.send(outcome()).unwrap();
    let report = scene
        .answer(has_result, directed(Directive::Shutdown))
        .await;
    assert_eq!(
        (report.results[0].lease, report.state),
        (LeaseId(9), WorkerState::Leaving)
    );
    ends_soon(scene).await.0.unwrap();
}

#[tokio::test]
async fn blobs_are_served_until_it_is_let_go() {
    let mut scene = scene(&[]).await;
    let bytes = Bytes::from_static(b"latent");
    let put = scene.blobs.put(bytes.clone(), Retention::Pinned);
    let blob = put.await.unwrap();
    scene.options.stop.cancel();
    scene.answer(is_leaving, nothing()).await;
    let folder = tempfile::tempdir().unwrap();
    let store = BlobStore::open(BlobStoreOptions {
        folder: folder.path().into(),
        memory_bytes_max: 1000,
        disk_bytes_max: 0,
    });
    let client = BlobClient::new(
        store.unwrap(),
        BlobClientOptions {
            access: retouch_credentials::Access::Open,
            run_folder: None,
            own_address: None::<BlobAddress>,
            limits: scene.options.fetch,
        },
    );
    let fetched = client.fetch(&blob, Retention::Pinned).await;
    assert_eq!(fetched.unwrap(), bytes);
}

#[tokio::test]
async fn a_coordinator_that_started_again_learns_what_a_leaving_worker_holds() {
    let mut scene = scene(&[]).await;
    let bytes = Bytes::from_static(b"state");
    let blob = scene.blobs.put(bytes, Retention::Pinned).await.unwrap();
    scene.options.stop.cancel();
    let reregister = directed(Directive::Reregister);
    scene.answer(is_leaving, reregister).await;
    let registration = scene.coordinator.admit(Ok(registered(2))).await;
    assert_eq!(registration.holds, [blob.hash]);
    let report = scene
        .answer(is_leaving, directed(Directive::Shutdown))
        .await;
    assert_eq!(report.generation, Generation(2));
    ends_soon(scene).await.0.unwrap();
}

#[tokio::test]
async fn it_ends_at_once_if_the_coordinator_is_gone_and_nothing_is_left_to_tell() {
    let mut scene = scene(&[]).await;
    scene.options.stop.cancel();
    scene.answer(is_leaving, nothing()).await;
    let other = FakeCoordinator::start("127.0.0.1:0").await;
    std::mem::replace(&mut scene.coordinator, other)
        .kill()
        .await;
    ends_soon(scene).await.0.unwrap();
}

#[tokio::test]
async fn results_are_kept_for_a_coordinator_that_comes_back() {
    let mut scene = scene(&[7]).await;
    let (_work, end) = scene.next_task().await;
    scene.options.stop.cancel();
    let address = scene.coordinator.address.to_string();
    let other = FakeCoordinator::start("127.0.0.1:0").await;
    std::mem::replace(&mut scene.coordinator, other)
        .kill()
        .await;
    end.send(outcome()).unwrap();
    scene.coordinator = FakeCoordinator::start(&address).await;
    let report = scene
        .answer(has_result, directed(Directive::Shutdown))
        .await;
    assert!(is_leaving(&report));
    ends_soon(scene).await.0.unwrap();
}

/// As one that knows nothing of letting workers go.
#[tokio::test]
async fn a_coordinator_that_never_lets_it_go_costs_the_grace() {
    let mut scene = Scene::with(&[], registered(1), |options| options.stop_grace = SHORT).await;
    scene.options.stop.cancel();
    let begin = Instant::now();
    let mut reports = 0;
    while !scene.serving.is_finished() {
        reports += scene.coordinator.count_calls(SHORT / 10, nothing()).await[1];
    }
    assert!(begin.elapsed() < LONG / 3, "{:?}", begin.elapsed());
    assert!(begin.elapsed() >= SHORT && reports > 1, "{reports}");
    scene.serving.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_coordinator_that_does_not_answer_costs_the_grace() {
    let scene = Scene::with(&[7], registered(1), |options| options.stop_grace = SHORT).await;
    scene.options.stop.cancel();
    let (served, _silent) = ends_soon(scene).await;
    served.unwrap();
}

#[tokio::test]
async fn before_it_has_joined_or_loaded_it_ends_at_once() {
    let mut coordinator = FakeCoordinator::start("127.0.0.1:0").await;
    let folder = tempfile::tempdir().unwrap();
    let mut options = options(&coordinator, &folder);
    let connecting = tokio::spawn(join(options.clone()));
    // It is never answered.
    let _unanswered = coordinator.registration().await;
    options.stop.cancel();
    let stopped = tokio::time::timeout(LONG / 3, connecting).await;
    let error = stopped.expect("it ends").unwrap().unwrap_err();
    assert!(matches!(error, SessionError::Stopped), "{error}");

    options.stop = tokio_util::sync::CancellationToken::new();
    options.stop_grace = LONG;
    let (session, _) = connect(&mut coordinator, &options, registered(1)).await;
    let (loaded, wait) = std::sync::mpsc::channel::<()>();
    let stop = options.stop.clone();
    let loading = session.load(move |_, _| {
        stop.cancel();
        wait.recv_timeout(LONG).ok();
        Ok(())
    });
    let begin = Instant::now();
    let error = loading.await.unwrap_err();
    assert!(error.is_stopped(), "{error}");
    assert!(begin.elapsed() < LONG / 3, "{:?}", begin.elapsed());
    drop((session, loaded));
    coordinator.report_with(is_leaving).await;
}
