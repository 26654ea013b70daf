//! Fetches blobs from their owners.

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use retouch_proto::{BlobAddress, BlobRef, ContentHash, limits::BLOB_CHUNK_BYTES};
use thiserror::Error;
use tokio::{
    io::{AsyncReadExt, AsyncSeekExt},
    sync::Semaphore,
    time::timeout,
};
use tonic::transport::Channel;

use super::{
    entries::Retention,
    grpc,
    partial::{Partial, Suspicion},
    store::{BlobStore, BlobStoreError},
};

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
}

impl Default for FetchLimits {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(3),
            chunk: Duration::from_secs(10),
            rounds: 3,
            pause: Duration::from_millis(100),
            transfers_max: 16,
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
    /// It came but can't be kept.
    #[error(transparent)]
    Store(#[from] BlobStoreError),
}

impl FetchError {
    /// The blob that has to be made again.
    pub fn lost_blob(&self) -> Option<ContentHash> {
        match self {
            Self::Lost { hash, .. } => Some(*hash),
            Self::Store(_) => None,
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

#[derive(Debug)]
struct Inner {
    store: BlobStore,
    token: String,
    run_folder: Option<PathBuf>,
    limits: FetchLimits,
    transfers: Semaphore,
    channels: Mutex<HashMap<String, Channel>>,
    under_way: Mutex<HashMap<ContentHash, Arc<tokio::sync::Mutex<()>>>>,
}

impl BlobClient {
    /// A client that presents `token` to owners and finds files in `run_folder`.
    pub fn new(
        store: BlobStore,
        token: String,
        run_folder: Option<PathBuf>,
        limits: FetchLimits,
    ) -> Self {
        Self(Arc::new(Inner {
            store,
            token,
            run_folder,
            limits,
            transfers: Semaphore::new(limits.transfers_max),
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
        let Ok(_permit) = self.0.transfers.acquire().await else {
            return Err(FetchError::Lost {
                hash: blob.hash,
                attempts: Vec::new(),
            });
        };
        let bytes = self.transfer(blob).await?;
        let (store, hash, kept) = (self.store().clone(), blob.hash, bytes.clone());
        let stored =
            tokio::task::spawn_blocking(move || store.put_verified(hash, kept, retention)).await;
        match stored {
            Ok(stored) => stored?,
            Err(error) => tracing::error!(%error, "keeping a fetched blob failed"),
        }
        Ok(bytes)
    }

    async fn transfer(&self, blob: &BlobRef) -> Result<Bytes, FetchError> {
        let mut partial = Partial::new(blob);
        let mut owners: Vec<BlobAddress> = blob.owners.clone();
        let mut said: HashMap<BlobAddress, String> = HashMap::new();
        let mut resume = true;
        for round in 0..self.0.limits.rounds {
            if round > 0 && !owners.is_empty() {
                tokio::time::sleep(self.0.limits.pause * 2_u32.pow(round - 1)).await;
            }
            for owner in owners.clone() {
                if !resume {
                    partial.clear();
                }
                let problem = match self.transfer_from(&owner, blob, &mut partial).await {
                    Err(problem) => problem,
                    Ok(()) => match partial.verify() {
                        Ok(bytes) => return Ok(bytes),
                        Err(Suspicion::Broken(broken)) => {
                            owners.retain(|owner| *owner != broken);
                            "sent other bytes than the hash asks for".to_owned()
                        }
                        Err(Suspicion::Several) => {
                            resume = false;
                            "ended a blob of several owners' parts with a wrong hash".to_owned()
                        }
                    },
                };
                tracing::debug!(%owner, blob = %blob.hash.short(), problem, "a transfer failed");
                said.insert(owner, problem);
            }
        }
        let attempts = blob
            .owners
            .iter()
            .filter_map(|o| Some((o.clone(), said.remove(o)?)))
            .collect();
        Err(FetchError::Lost {
            hash: blob.hash,
            attempts,
        })
    }

    /// Appends what this owner gives; `Ok` if nothing is missing any more.
    async fn transfer_from(
        &self,
        owner: &BlobAddress,
        blob: &BlobRef,
        partial: &mut Partial,
    ) -> Result<(), String> {
        match owner {
            BlobAddress::Grpc(address) => {
                self.transfer_from_worker(owner, address, blob, partial)
                    .await
            }
            BlobAddress::File(path) => self.transfer_from_file(owner, path, partial).await,
        }
    }

    async fn transfer_from_worker(
        &self,
        owner: &BlobAddress,
        address: &str,
        blob: &BlobRef,
        partial: &mut Partial,
    ) -> Result<(), String> {
        let channel = self.channel(address)?;
        let open = grpc::open_stream(channel, &self.0.token, &blob.hash, partial.offset());
        let mut stream = within(self.0.limits.connect + self.0.limits.chunk, open).await??;
        while let Some(chunk) = within(self.0.limits.chunk, stream.next_chunk()).await?? {
            if !partial.append(&chunk, owner) {
                partial.clear();
                return Err(format!(
                    "sent more than the {} bytes of the blob",
                    blob.size_bytes
                ));
            }
        }
        if partial.is_full() {
            Ok(())
        } else {
            Err(format!("ended after {} bytes", partial.offset()))
        }
    }

    async fn transfer_from_file(
        &self,
        owner: &BlobAddress,
        path: &str,
        partial: &mut Partial,
    ) -> Result<(), String> {
        let folder = self.0.run_folder.as_ref().ok_or("no run folder here")?;
        let path = folder.join(path);
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
        let channel = grpc::connect_lazily(address, self.0.limits.connect)?;
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

async fn within<T>(deadline: Duration, wait: impl Future<Output = T>) -> Result<T, String> {
    timeout(deadline, wait)
        .await
        .map_err(|_| format!("gave nothing for {} ms", deadline.as_millis()))
}
