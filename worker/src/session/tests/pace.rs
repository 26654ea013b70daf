//! How soon a worker reports, and how often at most.

use std::time::Instant;

use super::*;

/// Far longer than anything else in a test takes.
const LONG: Duration = Duration::from_secs(30);
const SHORT: Duration = Duration::from_millis(50);
/// Of counting.
const PERIOD: Duration = Duration::from_millis(500);
/// Heartbeats in it, and some that something else may have caused.
const REPORTS_MAX: usize = 10 + 4;

#[tokio::test]
async fn an_iteration_does_not_wait_for_a_heartbeat() {
    let begin = Instant::now();
    let mut scene = Scene::with(&[1], registered_at(1, LONG), |_| {}).await;
    for lease in 1..10 {
        let (work, end) = scene.next_task().await;
        assert_eq!(work.assignment.lease, LeaseId(lease));
        end.send(outcome()).unwrap();
        // As the real one does: results are answered at once, and work comes with the answer to a later report.
        scene.answer(has_result, nothing()).await;
        give(&mut scene.coordinator, &[lease + 1]).await;
    }
    assert!(begin.elapsed() < LONG, "{:?}", begin.elapsed());
}

#[tokio::test]
async fn blobs_that_came_are_told_and_the_next_report_follows() {
    let mut scene = Scene::with(&[], registered_at(1, LONG), |_| {}).await;
    let begin = Instant::now();
    let is_ready = |report: &Report| report.slots_free == 2;
    let open = scene.coordinator.report_with(is_ready).await;
    let put = scene
        .blobs
        .put(Bytes::from_static(b"latent"), Retention::Pinned);
    put.await.unwrap();
    // News in this answer, so that a report follows which tells of the blob.
    let committed = ReportReply {
        committed: Iteration(1),
        ..nothing()
    };
    open.answer(committed.clone());
    let came = |report: &Report| !report.blobs_added.is_empty();
    scene.answer(came, committed.clone()).await;
    scene.answer(is_ready, committed).await;
    assert!(begin.elapsed() < LONG, "{:?}", begin.elapsed());
}

#[tokio::test]
async fn full_slots_report_once_a_heartbeat() {
    let mut scene = Scene::with(&[1, 2], registered_at(1, SHORT), |_| {}).await;
    let _ends = [scene.next_task().await, scene.next_task().await];
    let [_, reports] = scene.coordinator.count_calls(PERIOD, nothing()).await;
    assert!((2..=REPORTS_MAX).contains(&reports), "{reports}");
}

#[tokio::test]
async fn answers_that_say_nothing_are_not_asked_for_all_the_time() {
    let mut scene = Scene::with(&[], registered_at(1, SHORT), |_| {}).await;
    let [_, reports] = scene.coordinator.count_calls(PERIOD, nothing()).await;
    assert!((2..=REPORTS_MAX).contains(&reports), "{reports}");
}

#[tokio::test]
async fn a_coordinator_that_always_wants_a_registration_gets_one_a_heartbeat() {
    let mut scene = Scene::with(&[], registered_at(1, SHORT), |_| {}).await;
    let reply = directed(Directive::Reregister);
    let [registrations, reports] = scene.coordinator.count_calls(PERIOD, reply).await;
    assert!(
        (2..=REPORTS_MAX).contains(&registrations),
        "{registrations}"
    );
    assert!(reports <= REPORTS_MAX, "{reports}");
}
