//! Transfers over loopback, from honest and from bad owners.

mod owner_grpc;

use std::{sync::atomic::Ordering, time::Duration};

use bytes::Bytes;
use owner_grpc::BadOwner;
use retouch_credentials::{Access, Authority, Principal};
use retouch_proto::{
    BlobAddress, BlobRef, ContentHash, Iteration, task::TaskFailure, worker::Role,
};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

use super::{blobs_grpc::BlobService, *};
use crate::server;

const LIMITS: FetchLimits = FetchLimits {
    connect: Duration::from_millis(500),
    chunk: Duration::from_millis(500),
    rounds: 2,
    pause: Duration::from_millis(1),
    transfers_max: 4,
    in_flight_bytes_max: 64 << 20,
    busy_max: Duration::from_secs(20),
};

/// A worker's store, service and client.
struct Worker {
    store: BlobStore,
    client: BlobClient,
    address: BlobAddress,
    stop: CancellationToken,
    folder: TempDir,
}

impl Worker {
    async fn fetch(&self, blob: &BlobRef) -> Result<Bytes, FetchError> {
        self.client.fetch(blob, Retention::Pinned).await
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// Blobs, bytes in memory and bytes in files.
fn usage(store: &BlobStore) -> [u64; 3] {
    let blobs = store.hashes().len() as u64;
    let entries = store.entries();
    [blobs, entries.memory_bytes(), entries.disk_bytes()]
}

async fn worker_with(memory_bytes_max: u64, access: Access) -> Worker {
    let folder = tempfile::tempdir().unwrap();
    let store = store(&folder, memory_bytes_max, 1 << 30).unwrap();
    let (listener, address) = server::bind(([127, 0, 0, 1], 0).into()).await.unwrap();
    let service = BlobService::new(store.clone(), access.clone());
    let stop = CancellationToken::new();
    server::spawn(listener, &access, service, Routes::default(), stop.clone()).unwrap();
    let address = BlobAddress::Grpc(address.to_string());
    let client = BlobClient::new(
        store.clone(),
        BlobClientOptions {
            access,
            run_folder: Some(folder.path().into()),
            own_address: Some(address.clone()),
            limits: LIMITS,
        },
    );
    Worker {
        store,
        client,
        address,
        stop,
        folder,
    }
}

async fn worker() -> Worker {
    worker_with(1 << 30, Access::Open).await
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
        .fetch(&reference(&bytes, &[&first.address]))
        .await
        .unwrap();
    assert_eq!(got, bytes);
    drop(first);
    let got = third
        .fetch(&reference(&bytes, &[&second.address]))
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
    assert!(second.fetch(&blob).await.unwrap().is_empty());
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
    assert_eq!(consumer.fetch(&blob).await.unwrap(), bytes);
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
    assert_eq!(consumer.fetch(&blob).await.unwrap(), good);

    let alone = worker().await;
    let error = alone
        .fetch(&reference(&good, &[&bad.address]))
        .await
        .unwrap_err();
    assert_eq!(error.lost_blob(), Some(ContentHash::of(&good)));
    assert!(error.to_string().contains("other bytes"), "{error}");
    assert_eq!(usage(&alone.store), [0; 3]);
}

#[tokio::test]
async fn a_broken_half_does_not_spoil_a_whole_owner() {
    let (owner, consumer) = (worker().await, worker().await);
    let good = bytes(2_500_000, 4);
    owner.store.put(good.clone(), Retention::Pinned).unwrap();
    let bad = BadOwner::that_ends_early(bytes(1_000_000, 5)).spawn().await;
    let blob = reference(&good, &[&bad.address, &owner.address]);
    assert_eq!(consumer.fetch(&blob).await.unwrap(), good);
}

#[tokio::test]
async fn dead_and_silent_owners_are_passed_over() {
    let (owner, consumer) = (worker().await, worker().await);
    let bytes = bytes(100_000, 6);
    owner.store.put(bytes.clone(), Retention::Pinned).unwrap();
    let silent = BadOwner::that_is_silent().spawn().await;
    let blob = reference(&bytes, &[&dead_owner(), &silent.address, &owner.address]);
    assert_eq!(consumer.fetch(&blob).await.unwrap(), bytes);
}

#[tokio::test]
async fn more_bytes_than_promised_are_refused() {
    let consumer = worker().await;
    let bytes = bytes(100_000, 7);
    let bad = BadOwner::that_sends(bytes.clone()).spawn().await;
    let mut blob = reference(&bytes, &[&bad.address]);
    blob.size_bytes = 99_999;
    let error = consumer.fetch(&blob).await.unwrap_err();
    assert!(error.to_string().contains("99999"), "{error}");
}

fn authority() -> Authority {
    Authority::open_or_create(tempfile::tempdir().unwrap().path()).unwrap()
}

#[tokio::test]
async fn blobs_go_to_the_runs_workers_and_control_and_to_nobody_else() {
    let (run, other_run) = (authority(), authority());
    let access = |authority: &Authority, principal| authority.issue(principal).unwrap().into();
    let owner = worker_with(1 << 30, access(&run, Principal::Worker(Role::Rollout))).await;
    let bytes = bytes(3_000_000, 8);
    owner.store.put(bytes.clone(), Retention::Pinned).unwrap();
    let blob = reference(&bytes, &[&owner.address]);
    for principal in [Principal::Worker(Role::Learner), Principal::Control] {
        let caller = worker_with(1 << 30, access(&run, principal)).await;
        assert_eq!(caller.fetch(&blob).await.unwrap(), bytes, "{principal}");
    }
    for (stranger, said) in [
        (
            access(&run, Principal::Coordinator),
            // Its certificate is good for serving alone.
            "UnsupportedCertificate",
        ),
        (
            access(&other_run, Principal::Worker(Role::Learner)),
            "invalid peer certificate: UnknownIssuer",
        ),
        (Access::Open, ""),
    ] {
        let stranger = worker_with(1 << 30, stranger).await;
        let error = stranger.fetch(&blob).await.unwrap_err();
        assert!(error.to_string().contains(said), "{error}");
        assert_eq!(usage(&stranger.store), [0; 3]);
    }
    // A stranger is no owner either, whatever bytes it has.
    let stranger = worker_with(1 << 30, Access::Open).await;
    stranger
        .store
        .put(bytes.clone(), Retention::Pinned)
        .unwrap();
    let fresh = worker_with(1 << 30, access(&run, Principal::Worker(Role::Learner))).await;
    let blob = reference(&bytes, &[&stranger.address]);
    let error = fresh.fetch(&blob).await.unwrap_err();
    assert_eq!(error.lost_blob(), Some(blob.hash));
}

/// All know of one owner alone, which serves four of them at a time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_blob_that_many_want_spreads_over_those_who_have_it() {
    let owner = worker().await;
    let bytes = bytes(4_000_000, 10);
    owner.store.put(bytes.clone(), Retention::Pinned).unwrap();
    let blob = reference(&bytes, &[&owner.address]);
    let mut consumers = Vec::new();
    for _ in 0..24 {
        consumers.push(worker().await);
    }
    let fetches = consumers.iter().map(|consumer| {
        let (client, blob) = (consumer.client.clone(), blob.clone());
        tokio::spawn(async move { client.fetch(&blob, Retention::Pinned).await })
    });
    for fetch in fetches.collect::<Vec<_>>() {
        assert_eq!(fetch.await.unwrap().unwrap(), bytes);
    }
}

#[tokio::test]
async fn owners_that_stay_busy_are_no_reason_to_make_a_blob_again() {
    let owner = worker().await;
    let bytes = bytes(100, 11);
    owner.store.put(bytes.clone(), Retention::Pinned).unwrap();
    let busy = BadOwner::that_is_busy(&owner.address).spawn().await;
    // It names one that has time.
    let consumer = worker().await;
    let blob = reference(&bytes, &[&busy.address]);
    let fetched = consumer.fetch(&blob).await.unwrap();
    assert_eq!(fetched, bytes);
    let alone = BadOwner::that_is_busy(&dead_owner()).spawn().await;
    let limits = FetchLimits {
        busy_max: Duration::from_millis(50),
        ..LIMITS
    };
    let hasty = BlobClient::new(
        worker().await.store.clone(),
        BlobClientOptions {
            access: Access::Open,
            run_folder: None,
            own_address: None,
            limits,
        },
    );
    let blob = reference(&bytes, &[&alone.address]);
    let error = hasty.fetch(&blob, Retention::Pinned).await.unwrap_err();
    assert_eq!(error.lost_blob(), None, "{error}");
    assert!(matches!(error, FetchError::Busy { .. }), "{error}");
}

#[tokio::test]
async fn a_blob_that_cannot_be_kept_is_not_even_begun() {
    let (owner, consumer) = (worker().await, worker().await);
    let bytes = bytes(1000, 12);
    owner.store.put(bytes.clone(), Retention::Pinned).unwrap();
    let mut blob = reference(&bytes, &[&owner.address]);
    blob.size_bytes = 1 << 40;
    let error = consumer.fetch(&blob).await.unwrap_err();
    assert!(
        matches!(error, FetchError::Store(BlobStoreError::Full { .. })),
        "{error}"
    );
}

#[tokio::test]
async fn transfers_share_a_bounded_number_of_bytes() {
    let owner = worker().await;
    let blobs: Vec<Bytes> = (0..6).map(|seed| bytes(3_000_000, seed)).collect();
    for blob in &blobs {
        owner.store.put(blob.clone(), Retention::Pinned).unwrap();
    }
    let consumer = worker().await;
    let limits = FetchLimits {
        in_flight_bytes_max: 1_000_000,
        ..LIMITS
    };
    let narrow = BlobClient::new(
        consumer.store.clone(),
        BlobClientOptions {
            access: Access::Open,
            run_folder: None,
            own_address: None,
            limits,
        },
    );
    // Each is longer than what may be under way: they go one after the other, and all arrive.
    let fetches = blobs.iter().map(|bytes| {
        let (client, blob) = (narrow.clone(), reference(bytes, &[&owner.address]));
        tokio::spawn(async move { client.fetch(&blob, Retention::Pinned).await })
    });
    for (fetch, bytes) in fetches.collect::<Vec<_>>().into_iter().zip(&blobs) {
        assert_eq!(fetch.await.unwrap().unwrap(), bytes);
    }
}

#[tokio::test]
async fn files_outside_of_the_run_folder_are_not_read() {
    let consumer = worker().await;
    let bytes = bytes(1000, 9);
    let outside = tempfile::tempdir().unwrap();
    std::fs::write(outside.path().join("state"), &bytes).unwrap();
    std::os::unix::fs::symlink(outside.path(), consumer.folder.path().join("link")).unwrap();
    for path in [
        "link/state".to_owned(),
        format!("../{}/state", outside.path().display()),
    ] {
        let blob = reference(&bytes, &[&BlobAddress::File(path.clone())]);
        let error = consumer.fetch(&blob).await.unwrap_err();
        assert!(
            error.to_string().contains("leads out of"),
            "{path}: {error}"
        );
    }
}

#[tokio::test]
async fn checkpoints_are_read_from_the_run_folder() {
    let consumer = worker().await;
    let bytes = bytes(2_000_000, 9);
    std::fs::write(consumer.folder.path().join("state"), &bytes).unwrap();
    let file = BlobAddress::File("state".into());
    let blob = reference(&bytes, &[&dead_owner(), &file]);
    assert_eq!(consumer.fetch(&blob).await.unwrap(), bytes);
}

#[tokio::test]
async fn full_memory_goes_to_files_and_is_served_from_there() {
    let (owner, consumer) = (worker_with(2_500_000, Access::Open).await, worker().await);
    let blobs: Vec<Bytes> = (0..4).map(|seed| bytes(1_200_000, seed)).collect();
    for blob in &blobs {
        owner.store.put(blob.clone(), Retention::Pinned).unwrap();
    }
    assert_eq!(usage(&owner.store), [4, 2_400_000, 2_400_000]);
    for blob in &blobs {
        let got = consumer
            .fetch(&reference(blob, &[&owner.address]))
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
fn a_file_that_is_gone_is_an_error_and_dropped() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(&folder, 0, 1000).unwrap();
    let hash = store.put(bytes(100, 1), Retention::Pinned).unwrap();
    std::fs::remove_file(folder.path().join(format!("blobs/{hash}.blob"))).unwrap();
    // On a thread of its own, so that a lock that is never given back fails the test.
    let (sender, answer) = std::sync::mpsc::channel();
    let reading = store.clone();
    std::thread::spawn(move || sender.send(reading.reader(&hash).is_err()));
    let failed = answer.recv_timeout(Duration::from_secs(20));
    assert!(failed.expect("the store answers"));
    assert!(store.hashes().is_empty());
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

/// As if the disk had no room for this blob: its file can be opened, and takes no byte.
fn fill_disk_for(folder: &TempDir, bytes: &Bytes) {
    let partial = format!("blobs/{}.part", ContentHash::of(bytes));
    std::os::unix::fs::symlink("/dev/full", folder.path().join(partial)).unwrap();
}

/// Files in the folder, the lock left out.
fn files(folder: &TempDir) -> usize {
    let entries = std::fs::read_dir(folder.path().join("blobs"));
    entries.unwrap().count() - 1
}

#[test]
fn a_full_disk_costs_the_new_blob_alone_until_there_is_room() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(&folder, 150, 1000).unwrap();
    let (old, new, large) = (bytes(100, 1), bytes(100, 2), bytes(200, 3));
    store.put(old.clone(), Retention::Pinned).unwrap();
    store.take_changes();
    // The old one has to make room for the new one; the large one is never held in memory.
    for (on_disk, put) in [(&old, &new), (&large, &large)] {
        fill_disk_for(&folder, on_disk);
        let error = store.put(put.clone(), Retention::Pinned).unwrap_err();
        assert!(matches!(&error, BlobStoreError::DiskFull { .. }), "{error}");
        let size = on_disk.len();
        let said = format!("cannot write {size} bytes to {}", folder.path().display());
        assert!(error.to_string().contains(&said), "{error}");
        assert_eq!((usage(&store), files(&folder)), ([1, 100, 0], 0));
        assert_eq!(store.take_changes(), Changes::default());
    }
    assert_eq!(store.get(&ContentHash::of(&old)).unwrap(), Some(old));
    for blob in [new, large] {
        store.put(blob, Retention::Pinned).unwrap();
    }
    assert_eq!((usage(&store), files(&folder)), ([3, 100, 300], 2));
}

#[tokio::test]
async fn a_fetched_blob_that_the_disk_has_no_room_for_is_a_full_disk() {
    let owner = worker().await;
    let bytes = bytes(100, 1);
    owner.store.put(bytes.clone(), Retention::Pinned).unwrap();
    let consumer = worker_with(0, Access::Open).await;
    fill_disk_for(&consumer.folder, &bytes);
    let blob = reference(&bytes, &[&owner.address]);
    let failure = TaskFailure::from(consumer.fetch(&blob).await.unwrap_err());
    assert!(failure.disk_full, "{failure:?}");
    assert_eq!(
        (usage(&consumer.store), files(&consumer.folder)),
        ([0; 3], 0)
    );
    assert_eq!(consumer.fetch(&blob).await.unwrap(), bytes);
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
