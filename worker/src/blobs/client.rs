//! Fetches blobs from their owners.

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use bytes::Bytes;
use retouch_credentials::Access;
use retouch_proto::{BlobAddress, BlobRef, ContentHash, limits::BLOB_CHUNK_BYTES, paths};
use thiserror::Error;
use tokio::{
    io::{AsyncReadExt, AsyncSeekExt},
    sync::Semaphore,
    time::timeout,
};
use tonic::transport::Channel;

use super::{
    blobs_grpc::{self, Piece},
    entries::Retention,
    partial::{Partial, Suspicion},
    search::{Next, Search},
    store::{BlobStore, BlobStoreError},
};

/// Connections that are kept. Workers that start again have new addresses, so old ones would pile up.
const CHANNELS_MAX: usize = 1_024;
/// In which bytes under way are counted.
const IN_FLIGHT_UNIT_BYTES: u64 = 1 << 16;

/// How patient a fetch is (A7).
#[derive(Clone, Copy, Debug)]
pub struct FetchLimits {
    /// For a connection to an owner.
    pub connect: Duration,
    /// For each chunk.
    pub chunk: Duration,
    /// How often the list of owners is gone through.
    pub rounds: u32,
    /// Pause before the second round; doubles each time.
    pub pause: Duration,
    /// Transfers at a time.
    pub transfers_max: usize,
    /// Bytes of all transfers under way; a longer blob travels alone.
    pub in_flight_bytes_max: u64,
    /// How long owners may be busy with others.
    pub busy_max: Duration,
}

impl Default for FetchLimits {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(3),
            chunk: Duration::from_secs(10),
            rounds: 3,
            pause: Duration::from_millis(100),
            transfers_max: 16,
            in_flight_bytes_max: 2 << 30,
            busy_max: Duration::from_secs(600),
        }
    }
}

/// A blob that could not be had.
#[derive(Debug, Error)]
pub enum FetchError {
    /// No owner gave it.
    #[error("no owner gave blob {hash}: {}", list(.attempts))]
    Lost {
        /// The blob.
        hash: ContentHash,
        /// What each owner said last.
        attempts: Vec<(BlobAddress, String)>,
    },
    /// Owners have it, and no time.
    #[error("the owners of blob {hash} have been busy for {waited_s} s")]
    Busy {
        /// The blob.
        hash: ContentHash,
        /// For how long they were asked.
        waited_s: u64,
    },
    /// It can't be kept.
    #[error(transparent)]
    Store(#[from] BlobStoreError),
}

impl FetchError {
    /// The blob that has to be made again.
    pub fn lost_blob(&self) -> Option<ContentHash> {
        match self {
            Self::Lost { hash, .. } => Some(*hash),
            Self::Busy { .. } | Self::Store(_) => None,
        }
    }
}

fn list(attempts: &[(BlobAddress, String)]) -> String {
    if attempts.is_empty() {
        return "it names none".to_owned();
    }
    let lines: Vec<String> = attempts
        .iter()
        .map(|(owner, said)| format!("{owner}: {said}"))
        .collect();
    lines.join("; ")
}

/// Fetches blobs and keeps them in the store; clones share connections.
#[derive(Clone, Debug)]
pub struct BlobClient(Arc<Inner>);

/// What a client has to know besides its store.
#[derive(Clone, Debug)]
pub struct BlobClientOptions {
    /// How it introduces itself to owners.
    pub access: Access,
    /// Where checkpoints are.
    pub run_folder: Option<PathBuf>,
    /// Where the store is served, for others to whom busy owners send their callers.
    pub own_address: Option<BlobAddress>,
    /// How patient it is.
    pub limits: FetchLimits,
}

#[derive(Debug)]
struct Inner {
    store: BlobStore,
    access: Access,
    run_folder: Option<PathBuf>,
    own_address: String,
    limits: FetchLimits,
    transfers: Semaphore,
    /// In units of [`IN_FLIGHT_UNIT_BYTES`].
    in_flight: Semaphore,
    channels: Mutex<HashMap<String, Channel>>,
    under_way: Mutex<HashMap<ContentHash, Arc<tokio::sync::Mutex<()>>>>,
}

impl BlobClient {
    /// A client that keeps what it fetches in `store`.
    pub fn new(store: BlobStore, options: BlobClientOptions) -> Self {
        let BlobClientOptions {
            access,
            run_folder,
            own_address,
            limits,
        } = options;
        let own_address = match own_address {
            Some(BlobAddress::Grpc(address)) => address,
            Some(BlobAddress::File(_)) | None => String::new(),
        };
        Self(Arc::new(Inner {
            store,
            access,
            run_folder,
            own_address,
            limits,
            transfers: Semaphore::new(limits.transfers_max),
            in_flight: Semaphore::new(units(limits.in_flight_bytes_max) as usize),
            channels: Mutex::default(),
            under_way: Mutex::default(),
        }))
    }

    /// The store in which fetched blobs are kept.
    pub fn store(&self) -> &BlobStore {
        &self.0.store
    }

    /// The blob's bytes: from the store, or from the first owner that gives them
    /// whole. A broken transfer is taken up where it stopped, with the next owner.
    ///
    /// # Errors
    ///
    /// If no owner gives bytes with the right hash, or they can't be kept.
    pub async fn fetch(&self, blob: &BlobRef, retention: Retention) -> Result<Bytes, FetchError> {
        // Several tasks may want the same blob: one fetches it, the others wait.
        let turn = self.turn(blob.hash);
        let _mine = turn.lock().await;
        let result = match self.held(blob, retention).await? {
            Some(bytes) => Ok(bytes),
            None => self.fetch_from_owners(blob, retention).await,
        };
        self.end_turn(&blob.hash, &turn);
        result
    }

    async fn held(
        &self,
        blob: &BlobRef,
        retention: Retention,
    ) -> Result<Option<Bytes>, FetchError> {
        // Extended before it is read, so that no commit drops it in between.
        if !self.store().extend(&blob.hash, retention) {
            return Ok(None);
        }
        let (store, hash) = (self.store().clone(), blob.hash);
        // A broken file is no reason to fail: another owner may have the blob.
        let held = tokio::task::spawn_blocking(move || store.get(&hash)).await;
        Ok(held.ok().and_then(Result::ok).flatten())
    }

    async fn fetch_from_owners(
        &self,
        blob: &BlobRef,
        retention: Retention,
    ) -> Result<Bytes, FetchError> {
        // Refused now rather than after a transfer.
        self.store().check_space(&blob.hash, blob.size_bytes)?;
        let closed = |_| FetchError::Lost {
            hash: blob.hash,
            attempts: Vec::new(),
        };
        let _transfer = self.0.transfers.acquire().await.map_err(closed)?;
        let limit = units(self.0.limits.in_flight_bytes_max);
        let room = units(blob.size_bytes).min(limit);
        let _room = self.0.in_flight.acquire_many(room).await.map_err(closed)?;
        let bytes = self.transfer(blob).await?;
        let (store, hash, kept) = (self.store().clone(), blob.hash, bytes.clone());
        let stored =
            tokio::task::spawn_blocking(move || store.put_verified(hash, kept, retention)).await;
        match stored {
            Ok(stored) => stored?,
            // The caller's bytes are whole and verified; only others have to look elsewhere for them.
            Err(error) => tracing::error!(%error, "keeping a fetched blob failed"),
        }
        Ok(bytes)
    }

    async fn transfer(&self, blob: &BlobRef) -> Result<Bytes, FetchError> {
        let limits = self.0.limits;
        let mut partial = Partial::new(blob);
        let mut search = Search::new(&blob.owners);
        let mut resume = Resume::Allowed;
        let begin = Instant::now();
        loop {
            match search.next() {
                Next::Ask(owner) => {
                    // Whole copies from here on, so that a wrong hash says whose is broken.
                    if resume == Resume::Forbidden {
                        partial.clear();
                    }
                    let asked = self.ask(owner, blob, &mut partial, &mut search).await;
                    match asked {
                        Asked::Whole(bytes) => return Ok(bytes),
                        Asked::Mixed => resume = Resume::Forbidden,
                        Asked::Nothing => {}
                    }
                }
                // Somebody has the blob: waiting for a turn is no failed round, and has a deadline of its own.
                Next::AllBusy if begin.elapsed() < limits.busy_max => {
                    tokio::time::sleep(limits.pause).await;
                }
                Next::AllBusy => {
                    return Err(FetchError::Busy {
                        hash: blob.hash,
                        waited_s: begin.elapsed().as_secs(),
                    });
                }
                Next::Failed { rounds } if rounds < limits.rounds => {
                    tokio::time::sleep(limits.pause * 2_u32.pow(rounds - 1)).await;
                }
                Next::Failed { .. } | Next::Hopeless => {
                    return Err(FetchError::Lost {
                        hash: blob.hash,
                        attempts: search.into_said(),
                    });
                }
            }
        }
    }

    async fn ask(
        &self,
        owner: BlobAddress,
        blob: &BlobRef,
        partial: &mut Partial,
        search: &mut Search,
    ) -> Asked {
        match self.transfer_from(&owner, blob, partial).await {
            Ok(()) => {}
            Err(Setback::Busy(others)) => {
                search.busy(owner, others);
                return Asked::Nothing;
            }
            Err(Setback::Problem(problem)) => {
                tracing::debug!(%owner, blob = %blob.hash.short(), problem, "a transfer failed");
                search.failed(owner, problem);
                return Asked::Nothing;
            }
        }
        match partial.verify() {
            Ok(bytes) => Asked::Whole(bytes),
            Err(Suspicion::Broken(broken)) => {
                let problem = "sent other bytes than the hash asks for";
                tracing::warn!(owner = %broken, blob = %blob.hash.short(), problem);
                if owner != broken {
                    // It was asked for the rest when there was none.
                    search.failed(owner, "had nothing to add".to_owned());
                }
                search.broken(broken, problem.to_owned());
                Asked::Nothing
            }
            Err(Suspicion::Several) => {
                let problem = "ended a blob of several owners' parts with a wrong hash";
                search.failed(owner, problem.to_owned());
                Asked::Mixed
            }
        }
    }

    /// Appends what this owner gives; `Ok` if nothing is missing any more.
    async fn transfer_from(
        &self,
        owner: &BlobAddress,
        blob: &BlobRef,
        partial: &mut Partial,
    ) -> Result<(), Setback> {
        match owner {
            BlobAddress::Grpc(address) => {
                self.transfer_from_worker(owner, address, blob, partial)
                    .await
            }
            BlobAddress::File(path) => self
                .transfer_from_file(owner, path, partial)
                .await
                .map_err(Setback::Problem),
        }
    }

    async fn transfer_from_worker(
        &self,
        owner: &BlobAddress,
        address: &str,
        blob: &BlobRef,
        partial: &mut Partial,
    ) -> Result<(), Setback> {
        let channel = self.channel(address)?;
        let own_address = &self.0.own_address;
        let open = blobs_grpc::open_stream(channel, &blob.hash, partial.offset(), own_address);
        let mut stream = within(self.0.limits.connect + self.0.limits.chunk, open).await??;
        loop {
            match within(self.0.limits.chunk, stream.next()).await?? {
                Piece::Data(chunk) if partial.append(&chunk, owner) => {}
                Piece::Data(_) => {
                    partial.clear();
                    let size = blob.size_bytes;
                    return Err(format!("sent more than the {size} bytes of the blob").into());
                }
                Piece::Busy(others) => return Err(Setback::Busy(others)),
                Piece::End if partial.is_full() => return Ok(()),
                Piece::End => return Err(format!("ended after {} bytes", partial.offset()).into()),
            }
        }
    }

    async fn transfer_from_file(
        &self,
        owner: &BlobAddress,
        path: &str,
        partial: &mut Partial,
    ) -> Result<(), String> {
        let folder = self.0.run_folder.as_ref().ok_or("no run folder here")?;
        let path = paths::inside(folder, path).map_err(|error| error.to_string())?;
        let problem = |error: std::io::Error| format!("{}: {error}", path.display());
        let mut file = tokio::fs::File::open(&path).await.map_err(problem)?;
        file.seek(std::io::SeekFrom::Start(partial.offset()))
            .await
            .map_err(problem)?;
        let mut chunk = vec![0; BLOB_CHUNK_BYTES];
        loop {
            let count = within(self.0.limits.chunk, file.read(&mut chunk))
                .await?
                .map_err(problem)?;
            if count == 0 {
                break;
            }
            if !partial.append(&chunk[..count], owner) {
                partial.clear();
                return Err("is longer than the blob".to_owned());
            }
        }
        if partial.is_full() {
            Ok(())
        } else {
            Err(format!("ends after {} bytes", partial.offset()))
        }
    }

    fn channel(&self, address: &str) -> Result<Channel, String> {
        let mut channels = self.0.channels.lock().unwrap_or_else(|e| e.into_inner());
        if let Some(channel) = channels.get(address) {
            return Ok(channel.clone());
        }
        let channel = blobs_grpc::connect_lazily(&self.0.access, address, self.0.limits.connect)?;
        if channels.len() >= CHANNELS_MAX {
            // Transfers under way hold theirs.
            channels.clear();
        }
        channels.insert(address.to_owned(), channel.clone());
        Ok(channel)
    }

    fn turn(&self, hash: ContentHash) -> Arc<tokio::sync::Mutex<()>> {
        let mut under_way = self.0.under_way.lock().unwrap_or_else(|e| e.into_inner());
        under_way.entry(hash).or_default().clone()
    }

    fn end_turn(&self, hash: &ContentHash, turn: &Arc<tokio::sync::Mutex<()>>) {
        let mut under_way = self.0.under_way.lock().unwrap_or_else(|e| e.into_inner());
        // Ours and the table's: nobody else waits.
        if Arc::strong_count(turn) == 2 {
            under_way.remove(hash);
        }
    }
}

/// What asking one owner has brought.
enum Asked {
    Whole(Bytes),
    /// All bytes, but not the right ones, from several owners.
    Mixed,
    Nothing,
}

/// Whether the next owner goes on where the last one stopped.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Resume {
    Allowed,
    /// Parts of several owners did not fit together.
    Forbidden,
}

/// Why an owner did not give everything.
enum Setback {
    Busy(Vec<BlobAddress>),
    Problem(String),
}

impl From<String> for Setback {
    fn from(problem: String) -> Self {
        Self::Problem(problem)
    }
}

/// Rounded up, and at least one.
fn units(bytes: u64) -> u32 {
    let units = bytes.div_ceil(IN_FLIGHT_UNIT_BYTES).max(1);
    u32::try_from(units).unwrap_or(u32::MAX)
}

async fn within<T>(deadline: Duration, wait: impl Future<Output = T>) -> Result<T, String> {
    timeout(deadline, wait)
        .await
        .map_err(|_| format!("gave nothing for {} ms", deadline.as_millis()))
}
