//! Who holds what: the blobs that open work refers to, and their living owners.

use std::collections::{BTreeSet, HashMap, HashSet};

use retouch_proto::limits::OWNERS_MAX;
use retouch_proto::{BlobAddress, BlobRef, ContentHash, WorkerId};

use super::record::Blob;
use super::workers::Workers;

/// Owners of the blobs that anything open refers to.
#[derive(Default)]
pub struct Blobs {
    known: HashMap<ContentHash, Entry>,
    held: HashMap<WorkerId, HashSet<ContentHash>>,
    /// Counts references given out, to spread readers over owners.
    given: usize,
}

#[derive(Default)]
struct Entry {
    owners: BTreeSet<WorkerId>,
    file: Option<String>,
}

impl Blobs {
    /// Begins to keep track of a blob.
    pub fn track(&mut self, hash: ContentHash) {
        self.known.entry(hash).or_default();
    }

    /// The blob is also a file of the run folder.
    pub fn add_file(&mut self, hash: ContentHash, path: String) {
        self.known.entry(hash).or_default().file = Some(path);
    }

    /// A worker holds these; those that nothing refers to are not kept track of.
    pub fn add(&mut self, worker: &WorkerId, hashes: impl IntoIterator<Item = ContentHash>) {
        for hash in hashes {
            if let Some(entry) = self.known.get_mut(&hash) {
                entry.owners.insert(worker.clone());
                self.held.entry(worker.clone()).or_default().insert(hash);
            }
        }
    }

    /// A worker no longer holds this; tells whether that was the last of a blob that is wanted.
    pub fn remove(&mut self, worker: &WorkerId, hash: ContentHash) -> bool {
        if let Some(held) = self.held.get_mut(worker) {
            held.remove(&hash);
        }
        let entry = self.known.get_mut(&hash);
        entry.is_some_and(|entry| entry.owners.remove(worker) && entry.owners.is_empty())
    }

    /// A worker and all it held is gone.
    pub fn remove_worker(&mut self, worker: &WorkerId) {
        for hash in self.held.remove(worker).unwrap_or_default() {
            if let Some(entry) = self.known.get_mut(&hash) {
                entry.owners.remove(worker);
            }
        }
    }

    /// Nobody has this: a consumer asked its owners in vain.
    pub fn remove_owners(&mut self, hash: ContentHash) {
        let owners = self
            .known
            .get_mut(&hash)
            .map(|entry| std::mem::take(&mut entry.owners));
        for owner in owners.unwrap_or_default() {
            if let Some(held) = self.held.get_mut(&owner) {
                held.remove(&hash);
            }
        }
    }

    /// Stops keeping track of everything that is not among these.
    pub fn retain(&mut self, wanted: &HashSet<ContentHash>) {
        self.known.retain(|hash, _| wanted.contains(hash));
        for held in self.held.values_mut() {
            held.retain(|hash| wanted.contains(hash));
        }
        self.held.retain(|_, held| !held.is_empty());
    }

    /// Blobs that are kept track of.
    pub fn tracked(&self) -> usize {
        self.known.len()
    }

    /// Whether anyone has the blob.
    pub fn is_available(&self, hash: ContentHash) -> bool {
        self.known
            .get(&hash)
            .is_some_and(|entry| !entry.owners.is_empty() || entry.file.is_some())
    }

    /// Whether this worker has the blob.
    pub fn is_held_by(&self, hash: ContentHash, worker: &WorkerId) -> bool {
        self.known
            .get(&hash)
            .is_some_and(|entry| entry.owners.contains(worker))
    }

    /// Whether something would be lost with this worker.
    pub fn is_only_owner(&self, worker: &WorkerId) -> bool {
        let held = self.held.get(worker).into_iter().flatten();
        let mut entries = held.filter_map(|hash| self.known.get(hash));
        entries.any(|entry| entry.owners.len() == 1 && entry.file.is_none())
    }

    /// A reference for a consumer, with a few owners to try: living ones in turn, the file last.
    pub fn reference(&mut self, blob: Blob, workers: &Workers) -> BlobRef {
        self.given += 1;
        let entry = self.known.entry(blob.hash).or_default();
        let start = self.given % entry.owners.len().max(1);
        let in_turn = entry
            .owners
            .iter()
            .skip(start)
            .chain(entry.owners.iter().take(start));
        let mut owners: Vec<BlobAddress> = in_turn
            .filter_map(|owner| workers.blob_address(owner))
            .take(OWNERS_MAX - 1)
            .collect();
        owners.extend(entry.file.clone().map(BlobAddress::File));
        BlobRef {
            hash: blob.hash,
            size_bytes: blob.size_bytes,
            owners,
        }
    }
}
