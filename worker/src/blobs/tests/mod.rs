//! Transfers over loopback, from honest and from bad owners.

mod grpc;

use std::{sync::atomic::Ordering, time::Duration};

use bytes::Bytes;
use grpc::BadOwner;
use retouch_proto::{BlobAddress, BlobRef, ContentHash, Iteration};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

use super::{grpc::BlobService, *};
use crate::{server, token::TokenCheck};

const TOKEN: &str = "join-me";
const LIMITS: FetchLimits = FetchLimits {
    connect: Duration::from_millis(500),
    chunk: Duration::from_millis(500),
    rounds: 2,
    pause: Duration::from_millis(1),
    transfers_max: 4,
};

/// A worker's store, service and client.
struct Worker {
    store: BlobStore,
    client: BlobClient,
    address: BlobAddress,
    stop: CancellationToken,
    folder: TempDir,
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

async fn worker_with(memory_bytes_max: u64, token: &str) -> Worker {
    let folder = tempfile::tempdir().unwrap();
    let store = store(&folder, memory_bytes_max, 1 << 30).unwrap();
    let (listener, address) = server::bind(([127, 0, 0, 1], 0).into()).await.unwrap();
    let service = BlobService::new(store.clone(), TokenCheck::new(TOKEN));
    let stop = CancellationToken::new();
    server::spawn(listener, service, Routes::default(), stop.clone());
    let client = BlobClient::new(
        store.clone(),
        token.into(),
        Some(folder.path().into()),
        LIMITS,
    );
    Worker {
        store,
        client,
        address: BlobAddress::Grpc(address.to_string()),
        stop,
        folder,
    }
}

async fn worker() -> Worker {
    worker_with(1 << 30, TOKEN).await
}

fn store(folder: &TempDir, memory: u64, disk: u64) -> Result<BlobStore, BlobStoreError> {
    let folder = folder.path().join("blobs");
    BlobStore::open(BlobStoreOptions {
        folder,
        memory_bytes_max: memory,
        disk_bytes_max: disk,
    })
}

fn bytes(len: usize, seed: usize) -> Bytes {
    (0..len)
        .map(|i| (i * 31 + i / 256 * 7 + seed) as u8)
        .collect()
}

fn reference(bytes: &Bytes, owners: &[&BlobAddress]) -> BlobRef {
    BlobRef {
        hash: ContentHash::of(bytes),
        size_bytes: bytes.len() as u64,
        owners: owners.iter().copied().cloned().collect(),
    }
}

fn dead_owner() -> BlobAddress {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    BlobAddress::Grpc(listener.local_addr().unwrap().to_string())
}

#[tokio::test]
async fn fetching_makes_an_owner() {
    let (first, second, third) = (worker().await, worker().await, worker().await);
    let bytes = bytes(5_000_000, 1);
    first.store.put(bytes.clone(), Retention::Pinned).unwrap();
    let got = second
        .client
        .fetch(&reference(&bytes, &[&first.address]), Retention::Pinned)
        .await
        .unwrap();
    assert_eq!(got, bytes);
    drop(first);
    let got = third
        .client
        .fetch(&reference(&bytes, &[&second.address]), Retention::Pinned)
        .await
        .unwrap();
    assert_eq!(got, bytes);
    assert_eq!(third.store.take_changes().added, [ContentHash::of(&bytes)]);
}

#[tokio::test]
async fn empty_blobs_travel_too() {
    let (first, second) = (worker().await, worker().await);
    first.store.put(Bytes::new(), Retention::Pinned).unwrap();
    let blob = reference(&Bytes::new(), &[&first.address]);
    assert!(
        second
            .client
            .fetch(&blob, Retention::Pinned)
            .await
            .unwrap()
            .is_empty()
    );
}

#[tokio::test]
async fn broken_transfer_is_resumed_at_the_next_owner() {
    let (owner, consumer) = (worker().await, worker().await);
    let bytes = bytes(3_000_000, 2);
    owner.store.put(bytes.clone(), Retention::Pinned).unwrap();
    let half = BadOwner::that_ends_early(bytes.slice(..1_234_567))
        .spawn()
        .await;
    let rest = BadOwner::that_tells_offsets(bytes.clone()).spawn().await;
    let blob = reference(&bytes, &[&half.address, &rest.address]);
    assert_eq!(
        consumer
            .client
            .fetch(&blob, Retention::Pinned)
            .await
            .unwrap(),
        bytes
    );
    assert_eq!(rest.offset.load(Ordering::SeqCst), 1_234_567);
}

#[tokio::test]
async fn corruption_is_noticed_and_another_owner_asked() {
    let (owner, consumer) = (worker().await, worker().await);
    let good = bytes(2_500_000, 3);
    owner.store.put(good.clone(), Retention::Pinned).unwrap();
    let mut flipped = good.to_vec();
    flipped[2_000_000] ^= 1;
    let bad = BadOwner::that_sends(flipped.into()).spawn().await;
    let blob = reference(&good, &[&bad.address, &owner.address]);
    assert_eq!(
        consumer
            .client
            .fetch(&blob, Retention::Pinned)
            .await
            .unwrap(),
        good
    );

    let alone = worker().await;
    let error = alone
        .client
        .fetch(&reference(&good, &[&bad.address]), Retention::Pinned)
        .await
        .unwrap_err();
    assert_eq!(error.lost_blob(), Some(ContentHash::of(&good)));
    assert!(error.to_string().contains("other bytes"), "{error}");
    assert_eq!(alone.store.usage(), Usage::default());
}

#[tokio::test]
async fn a_broken_half_does_not_spoil_a_whole_owner() {
    let (owner, consumer) = (worker().await, worker().await);
    let good = bytes(2_500_000, 4);
    owner.store.put(good.clone(), Retention::Pinned).unwrap();
    let bad = BadOwner::that_ends_early(bytes(1_000_000, 5)).spawn().await;
    let blob = reference(&good, &[&bad.address, &owner.address]);
    assert_eq!(
        consumer
            .client
            .fetch(&blob, Retention::Pinned)
            .await
            .unwrap(),
        good
    );
}

#[tokio::test]
async fn dead_and_silent_owners_are_passed_over() {
    let (owner, consumer) = (worker().await, worker().await);
    let bytes = bytes(100_000, 6);
    owner.store.put(bytes.clone(), Retention::Pinned).unwrap();
    let silent = BadOwner::that_is_silent().spawn().await;
    let blob = reference(&bytes, &[&dead_owner(), &silent.address, &owner.address]);
    assert_eq!(
        consumer
            .client
            .fetch(&blob, Retention::Pinned)
            .await
            .unwrap(),
        bytes
    );
}

#[tokio::test]
async fn more_bytes_than_promised_are_refused() {
    let consumer = worker().await;
    let bytes = bytes(100_000, 7);
    let bad = BadOwner::that_sends(bytes.clone()).spawn().await;
    let mut blob = reference(&bytes, &[&bad.address]);
    blob.size_bytes = 99_999;
    let error = consumer
        .client
        .fetch(&blob, Retention::Pinned)
        .await
        .unwrap_err();
    assert!(error.to_string().contains("99999"), "{error}");
}

#[tokio::test]
async fn strangers_get_nothing() {
    let (owner, stranger) = (worker().await, worker_with(1 << 30, "guess").await);
    let bytes = bytes(10, 8);
    owner.store.put(bytes.clone(), Retention::Pinned).unwrap();
    let error = stranger
        .client
        .fetch(&reference(&bytes, &[&owner.address]), Retention::Pinned)
        .await
        .unwrap_err();
    assert!(error.to_string().contains("token"), "{error}");
}

#[tokio::test]
async fn checkpoints_are_read_from_the_run_folder() {
    let consumer = worker().await;
    let bytes = bytes(2_000_000, 9);
    std::fs::write(consumer.folder.path().join("state"), &bytes).unwrap();
    let file = BlobAddress::File("state".into());
    let blob = reference(&bytes, &[&dead_owner(), &file]);
    assert_eq!(
        consumer
            .client
            .fetch(&blob, Retention::Pinned)
            .await
            .unwrap(),
        bytes
    );
}

#[tokio::test]
async fn full_memory_goes_to_files_and_is_served_from_there() {
    let (owner, consumer) = (worker_with(2_500_000, TOKEN).await, worker().await);
    let blobs: Vec<Bytes> = (0..4).map(|seed| bytes(1_200_000, seed)).collect();
    for blob in &blobs {
        owner.store.put(blob.clone(), Retention::Pinned).unwrap();
    }
    assert_eq!(
        owner.store.usage(),
        Usage {
            blobs: 4,
            memory_bytes: 2_400_000,
            disk_bytes: 2_400_000
        }
    );
    for blob in &blobs {
        let got = consumer
            .client
            .fetch(&reference(blob, &[&owner.address]), Retention::Pinned)
            .await
            .unwrap();
        assert_eq!(got, blob);
        assert_eq!(
            owner.store.get(&ContentHash::of(blob)).unwrap().unwrap(),
            blob
        );
    }
    owner.store.release(&ContentHash::of(&blobs[0]));
    assert_eq!(
        std::fs::read_dir(owner.folder.path().join("blobs"))
            .unwrap()
            .count(),
        2
    );
}

#[test]
fn changed_file_is_an_error_and_dropped() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(&folder, 0, 1000).unwrap();
    let hash = store.put(bytes(100, 1), Retention::Pinned).unwrap();
    std::fs::write(
        folder.path().join(format!("blobs/{hash}.blob")),
        bytes(100, 2),
    )
    .unwrap();
    assert!(matches!(
        store.get(&hash),
        Err(BlobStoreError::Corrupt { .. })
    ));
    assert!(store.get(&hash).unwrap().is_none());
}

#[test]
fn full_store_says_so_and_takes_what_it_has() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(&folder, 150, 100).unwrap();
    store.put(bytes(100, 1), Retention::Pinned).unwrap();
    store.put(bytes(100, 2), Retention::Pinned).unwrap();
    let error = store
        .put(bytes(100, 3), Retention::Pinned)
        .unwrap_err()
        .to_string();
    assert!(error.contains("100 more would exceed the 100"), "{error}");
    store.put(bytes(100, 2), Retention::Pinned).unwrap();
}

#[test]
fn committed_blobs_go_unless_they_are_needed_longer() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(&folder, 1000, 0).unwrap();
    let until = |iteration| Retention::Until(Iteration(iteration));
    let first = store.put(bytes(10, 1), until(1)).unwrap();
    let shared = store.put(bytes(10, 2), until(1)).unwrap();
    assert_eq!(store.put(bytes(10, 2), until(2)).unwrap(), shared);
    let pinned = store.put(bytes(10, 3), Retention::Pinned).unwrap();
    store.take_changes();
    store.commit(Iteration(1));
    assert_eq!(
        store.take_changes(),
        Changes {
            added: vec![],
            dropped: vec![first]
        }
    );
    store.commit(Iteration(2));
    assert_eq!(store.hashes(), [pinned]);
}

#[test]
fn folder_has_one_owner_and_starts_empty() {
    let folder = tempfile::tempdir().unwrap();
    let first = store(&folder, 0, 1000).unwrap();
    let hash = first.put(bytes(10, 1), Retention::Pinned).unwrap();
    assert!(matches!(
        store(&folder, 0, 1000),
        Err(BlobStoreError::InUse { .. })
    ));
    drop(first);
    let second = store(&folder, 0, 1000).unwrap();
    assert!(second.get(&hash).unwrap().is_none());
    assert!(!folder.path().join(format!("blobs/{hash}.blob")).exists());
}
