//! One round trip of a worker over a socket: its result is recorded on disk, and the answer
//! carries its next task.

#[path = "common/mod.rs"]
mod common;
#[path = "common/dataset.rs"]
mod dataset;
#[path = "common/worker_grpc.rs"]
mod worker_grpc;

use criterion::{Criterion, criterion_group, criterion_main};
use tokio::runtime::Runtime;

fn dispatch(criterion: &mut Criterion) {
    let runtime = Runtime::new().expect("a runtime");
    let folder = tempfile::tempdir().expect("a folder");
    let rows = folder.path().join("dataset");
    dataset::write(&rows, 1_000).expect("written");
    let mut config = common::config(16_384);
    config.dataset.path = rows.display().to_string();
    let mut worker = runtime.block_on(worker_grpc::Worker::start(
        config,
        &folder.path().join("run"),
    ));
    criterion.bench_function("dispatch/heartbeat", |bencher| {
        bencher.iter(|| runtime.block_on(worker.heartbeat()));
    });
    criterion.bench_function("dispatch/result to next task, recorded", |bencher| {
        bencher.iter(|| runtime.block_on(worker.work_once()));
    });
}

criterion_group!(benches, dispatch);
criterion_main!(benches);
