//! One round trip of a worker over a socket: its result is recorded on disk, and the answer
//! carries its next task.

#[path = "common/mod.rs"]
mod common;
#[path = "common/worker_grpc.rs"]
mod worker_grpc;

use std::fs;

use criterion::{Criterion, criterion_group, criterion_main};
use tokio::runtime::Runtime;

fn dispatch(criterion: &mut Criterion) {
    let runtime = Runtime::new().expect("a runtime");
    let folder = tempfile::tempdir().expect("a folder");
    let dataset = folder.path().join("dataset");
    fs::create_dir_all(&dataset).expect("a folder");
    fs::write(dataset.join("a.png"), "").expect("written");
    let row = "{\"prompt\": \"p\", \"image\": \"a.png\", \"requirement\": \"r\"}\n";
    fs::write(dataset.join("train_metadata.jsonl"), row.repeat(1_000)).expect("written");
    let mut config = common::config(16_384);
    config.dataset.path = dataset.display().to_string();
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
