//! Who holds what: the blobs that open work refers to, and their living owners.

use std::collections::{BTreeSet, HashMap, HashSet};

use retouch_proto::limits::OWNERS_MAX;
use retouch_proto::{BlobAddress, BlobRef, ContentHash, WorkerId};

use super::record::Blob;
use super::workers::Workers;

/// Owners of the blobs that anything open refers to.
#[derive(Default)]
pub(super) struct Blobs {
    /// Only what is referred to: workers report every blob they make, and most are soon of no use (A7).
    known: HashMap<ContentHash, Entry>,
    /// The same by worker, so that losing one does not mean looking at every blob.
    held: HashMap<WorkerId, HashSet<ContentHash>>,
    /// Counts references given out, to spread readers over owners.
    given: usize,
    /// Something may have lost its last owner since the last search, which goes through all open groups.
    may_be_lost: bool,
    /// After a restart nobody is known to hold anything: until then, holders may still register.
    holders_until_ms: Option<u64>,
}

#[derive(Default)]
struct Entry {
    owners: BTreeSet<WorkerId>,
    file: Option<String>,
}

impl Blobs {
    /// Begins to keep track of a blob.
    pub(super) fn track(&mut self, hash: ContentHash) {
        self.known.entry(hash).or_default();
    }

    /// The blob is also a file of the run folder.
    pub(super) fn add_file(&mut self, hash: ContentHash, path: String) {
        self.known.entry(hash).or_default().file = Some(path);
    }

    /// A worker holds these; those that nothing refers to are not kept track of.
    pub(super) fn add(&mut self, worker: &WorkerId, hashes: impl IntoIterator<Item = ContentHash>) {
        for hash in hashes {
            if let Some(entry) = self.known.get_mut(&hash) {
                entry.owners.insert(worker.clone());
                self.held.entry(worker.clone()).or_default().insert(hash);
            }
        }
    }

    /// A worker no longer holds this.
    pub(super) fn remove(&mut self, worker: &WorkerId, hash: ContentHash) {
        if let Some(held) = self.held.get_mut(worker) {
            held.remove(&hash);
        }
        let entry = self.known.get_mut(&hash);
        self.may_be_lost |=
            entry.is_some_and(|entry| entry.owners.remove(worker) && entry.owners.is_empty());
    }

    /// A worker and all it held is gone.
    pub(super) fn remove_worker(&mut self, worker: &WorkerId) {
        for hash in self.held.remove(worker).unwrap_or_default() {
            if let Some(entry) = self.known.get_mut(&hash) {
                entry.owners.remove(worker);
            }
        }
    }

    /// No owner has this: a consumer asked them in vain.
    pub(super) fn remove_owners(&mut self, hash: ContentHash) {
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

    /// A search for lost blobs is due.
    pub(super) fn suspect_loss(&mut self) {
        self.may_be_lost = true;
    }

    /// Takes nothing for lost until then: whoever holds it may not have registered yet.
    pub(super) fn await_holders(&mut self, until_ms: u64) {
        self.holders_until_ms = Some(until_ms);
    }

    /// Whether holders may still register.
    pub(super) fn is_awaiting_holders(&self) -> bool {
        self.holders_until_ms.is_some()
    }

    /// Takes the suspicion that something is lost, unless its holders may still register.
    pub(super) fn take_suspicion(&mut self, now_ms: u64) -> bool {
        if self
            .holders_until_ms
            .take_if(|until_ms| *until_ms <= now_ms)
            .is_some()
        {
            self.may_be_lost = true;
        }
        self.holders_until_ms.is_none() && std::mem::take(&mut self.may_be_lost)
    }

    /// Stops keeping track of everything that is not among these.
    pub(super) fn retain(&mut self, wanted: &HashSet<ContentHash>) {
        self.known.retain(|hash, _| wanted.contains(hash));
        for held in self.held.values_mut() {
            held.retain(|hash| wanted.contains(hash));
        }
        self.held.retain(|_, held| !held.is_empty());
    }

    /// Blobs that are kept track of.
    #[cfg(any(test, feature = "simulator"))]
    pub(super) fn tracked(&self) -> usize {
        self.known.len()
    }

    /// Whether anyone has the blob.
    pub(super) fn is_available(&self, hash: ContentHash) -> bool {
        self.known
            .get(&hash)
            .is_some_and(|entry| !entry.owners.is_empty() || entry.file.is_some())
    }

    /// Whether this worker has the blob.
    pub(super) fn is_held_by(&self, hash: ContentHash, worker: &WorkerId) -> bool {
        self.known
            .get(&hash)
            .is_some_and(|entry| entry.owners.contains(worker))
    }

    /// Whether somebody has all of these.
    pub(super) fn are_available(&self, mut blobs: impl Iterator<Item = Blob>) -> bool {
        blobs.all(|blob| self.is_available(blob.hash))
    }

    /// Whether something would be lost with this worker.
    pub(super) fn is_only_owner(&self, worker: &WorkerId) -> bool {
        let held = self.held.get(worker).into_iter().flatten();
        let mut entries = held.filter_map(|hash| self.known.get(hash));
        entries.any(|entry| entry.owners.len() == 1 && entry.file.is_none())
    }

    /// A reference for a consumer, with a few owners to try: living ones in turn, the file last.
    pub(super) fn reference(&mut self, blob: Blob, workers: &Workers) -> BlobRef {
        self.given += 1;
        let entry = self.known.entry(blob.hash).or_default();
        // Always the first owner would make one worker serve everybody; any other choice must be repeatable (A1).
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
