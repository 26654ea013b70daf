//! A session's blobs, as tasks use them.

use bytes::Bytes;
use retouch_proto::{BlobAddress, BlobRef, ContentHash, task::TaskFailure};
use tokio::task::{JoinSet, spawn_blocking};

use crate::blobs::{BlobClient, BlobStore, BlobStoreError, Retention};

/// A session's blobs, for use in tasks.
#[derive(Clone, Debug)]
pub struct Blobs {
    pub(super) client: BlobClient,
    pub(super) address: BlobAddress,
}

impl Blobs {
    /// Stores bytes and gives the reference under which others can fetch them.
    ///
    /// # Errors
    ///
    /// If they can't be kept.
    pub async fn put(&self, bytes: Bytes, retention: Retention) -> Result<BlobRef, BlobStoreError> {
        let (store, size_bytes) = (self.store().clone(), bytes.len() as u64);
        let stored = spawn_blocking(move || store.put(bytes, retention)).await;
        let hash = stored.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))?;
        Ok(BlobRef {
            hash,
            size_bytes,
            owners: vec![self.address.clone()],
        })
    }

    /// The blob's bytes, from here or from an owner.
    ///
    /// # Errors
    ///
    /// A failure of the task that needs it, naming the blob if it is lost.
    pub async fn fetch(&self, blob: &BlobRef, retention: Retention) -> Result<Bytes, TaskFailure> {
        Ok(self.client.fetch(blob, retention).await?)
    }

    /// Fetches several blobs at once, in order.
    ///
    /// # Errors
    ///
    /// A failure that names all blobs which are lost.
    pub async fn fetch_all(
        &self,
        blobs: &[BlobRef],
        retention: Retention,
    ) -> Result<Vec<Bytes>, TaskFailure> {
        let mut transfers = JoinSet::new();
        for (index, blob) in blobs.iter().cloned().enumerate() {
            let this = self.clone();
            transfers.spawn(async move { (index, this.fetch(&blob, retention).await) });
        }
        let mut results = transfers.join_all().await;
        results.sort_by_key(|(index, _)| *index);
        let (mut fetched, mut failed): (Vec<Bytes>, Option<TaskFailure>) = (Vec::new(), None);
        for (_, result) in results {
            match (result, &mut failed) {
                (Ok(bytes), _) => fetched.push(bytes),
                (Err(failure), None) => failed = Some(failure),
                (Err(failure), Some(first)) => first.lost_blobs.extend(failure.lost_blobs),
            }
        }
        failed.map_or(Ok(fetched), Err)
    }

    /// Drops a blob.
    pub fn release(&self, hash: &ContentHash) {
        self.store().release(hash);
    }

    /// The store behind.
    pub fn store(&self) -> &BlobStore {
        self.client.store()
    }
}
