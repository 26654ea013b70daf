//! A blob's way from one worker's memory or disk to another's.

use bytes::Bytes;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use retouch_credentials::Access;
use retouch_proto::{BlobAddress, BlobRef};
use retouch_worker::blobs::{
    BlobClient, BlobClientOptions, BlobStore, BlobStoreOptions, FetchLimits, Retention, serve,
};
use tokio_util::sync::CancellationToken;

const BLOB_BYTES: usize = 256 << 20;

fn store(folder: &std::path::Path, memory_bytes_max: u64) -> BlobStore {
    let folder = folder.to_owned();
    BlobStore::open(BlobStoreOptions {
        folder,
        memory_bytes_max,
        disk_bytes_max: 4 << 30,
    })
    .expect("a folder")
}

fn fetch(criterion: &mut Criterion) {
    let runtime = tokio::runtime::Runtime::new().expect("threads");
    let folder = tempfile::tempdir().expect("a folder");
    let bytes = Bytes::from(vec![7; BLOB_BYTES]);
    let mut group = criterion.benchmark_group("blob_256MiB");
    group
        .sample_size(10)
        .throughput(Throughput::Bytes(BLOB_BYTES as u64));
    for (place, memory_bytes_max) in [("memory", 1 << 30), ("disk", 0)] {
        let owner = store(
            &folder.path().join(format!("owner-{place}")),
            memory_bytes_max,
        );
        let hash = owner.put(bytes.clone(), Retention::Pinned).expect("space");
        let stop = CancellationToken::new();
        let address = runtime
            .block_on(serve(
                owner,
                &Access::Open,
                ([127, 0, 0, 1], 0).into(),
                stop.clone(),
            ))
            .expect("a port");
        let owners = vec![BlobAddress::Grpc(address.to_string())];
        let blob = BlobRef {
            hash,
            size_bytes: BLOB_BYTES as u64,
            owners,
        };
        let consumer = store(&folder.path().join(format!("consumer-{place}")), 1 << 30);
        let options = BlobClientOptions {
            access: Access::Open,
            run_folder: None,
            own_address: None,
            limits: FetchLimits::default(),
        };
        let client = BlobClient::new(consumer.clone(), options);
        group.bench_function(BenchmarkId::new("from", place), |bencher| {
            bencher.iter(|| {
                runtime
                    .block_on(client.fetch(&blob, Retention::Pinned))
                    .expect("the owner lives");
                consumer.release(&hash);
            });
        });
        stop.cancel();
    }
    group.bench_function("hash", |bencher| {
        bencher.iter(|| retouch_proto::ContentHash::of(&bytes))
    });
    group.finish();
}

criterion_group!(benches, fetch);
criterion_main!(benches);
