//! The books of the blob store: what is held, where, until when. No IO.

use std::collections::HashMap;

use bytes::Bytes;
use retouch_proto::{ContentHash, Iteration};

/// How long a blob is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Retention {
    /// Until this iteration is committed.
    Until(Iteration),
    /// Until it is released by hand.
    Pinned,
}

/// Where a blob's bytes are.
#[derive(Clone, Debug)]
pub(super) enum Place {
    Memory(Bytes),
    Disk,
}

#[derive(Debug)]
struct Entry {
    size: u64,
    place: Place,
    retention: Retention,
    /// Grows with every use; the least recently used blob leaves memory first.
    used: u64,
}

/// All blobs of a store.
#[derive(Debug, Default)]
pub(super) struct Entries {
    entries: HashMap<ContentHash, Entry>,
    memory_bytes: u64,
    disk_bytes: u64,
    clock: u64,
    /// What was added (true) or dropped since it was last asked for.
    changes: HashMap<ContentHash, bool>,
}

impl Entries {
    pub(super) fn memory_bytes(&self) -> u64 {
        self.memory_bytes
    }

    pub(super) fn disk_bytes(&self) -> u64 {
        self.disk_bytes
    }

    pub(super) fn hashes(&self) -> Vec<ContentHash> {
        self.entries.keys().copied().collect()
    }

    pub(super) fn holds(&self, hash: &ContentHash) -> bool {
        self.entries.contains_key(hash)
    }

    /// The blob's place and size, and notes that it was used.
    pub(super) fn touch(&mut self, hash: &ContentHash) -> Option<(Place, u64)> {
        self.clock += 1;
        let entry = self.entries.get_mut(hash)?;
        entry.used = self.clock;
        Some((entry.place.clone(), entry.size))
    }

    /// Keeps a held blob at least this long; whether it is held.
    pub(super) fn extend(&mut self, hash: &ContentHash, retention: Retention) -> bool {
        let Some(entry) = self.entries.get_mut(hash) else {
            return false;
        };
        entry.retention = entry.retention.max(retention);
        true
    }

    pub(super) fn insert(
        &mut self,
        hash: ContentHash,
        place: Place,
        size: u64,
        retention: Retention,
    ) {
        if self.extend(&hash, retention) {
            return;
        }
        self.clock += 1;
        *self.bytes_in(&place) += size;
        self.entries.insert(
            hash,
            Entry {
                size,
                place,
                retention,
                used: self.clock,
            },
        );
        self.note(hash, true);
    }

    /// Forgets the blob; whether a file of it is left to be deleted.
    pub(super) fn remove(&mut self, hash: &ContentHash) -> bool {
        let Some(entry) = self.entries.remove(hash) else {
            return false;
        };
        *self.bytes_in(&entry.place) -= entry.size;
        self.note(*hash, false);
        matches!(entry.place, Place::Disk)
    }

    /// The blobs that nobody needs once `committed` is.
    pub(super) fn expired(&self, committed: Iteration) -> Vec<ContentHash> {
        let expired = |entry: &Entry| entry.retention <= Retention::Until(committed);
        self.entries
            .iter()
            .filter(|(_, entry)| expired(entry))
            .map(|(hash, _)| *hash)
            .collect()
    }

    /// The blob that should leave memory first, if there is one.
    pub(super) fn coldest(&self) -> Option<(ContentHash, Bytes)> {
        let in_memory = self
            .entries
            .iter()
            .filter_map(|(hash, entry)| match &entry.place {
                Place::Memory(bytes) => Some((entry.used, *hash, bytes)),
                Place::Disk => None,
            });
        in_memory
            .min_by_key(|(used, ..)| *used)
            .map(|(_, hash, bytes)| (hash, bytes.clone()))
    }

    /// Notes that the blob's bytes went to disk; false if it was dropped meanwhile.
    pub(super) fn moved_to_disk(&mut self, hash: &ContentHash) -> bool {
        let Some(entry) = self.entries.get_mut(hash) else {
            return false;
        };
        if matches!(entry.place, Place::Memory(_)) {
            entry.place = Place::Disk;
            self.memory_bytes -= entry.size;
            self.disk_bytes += entry.size;
        }
        true
    }

    pub(super) fn take_changes(&mut self) -> HashMap<ContentHash, bool> {
        std::mem::take(&mut self.changes)
    }

    fn bytes_in(&mut self, place: &Place) -> &mut u64 {
        match place {
            Place::Memory(_) => &mut self.memory_bytes,
            Place::Disk => &mut self.disk_bytes,
        }
    }

    fn note(&mut self, hash: ContentHash, held: bool) {
        self.changes.insert(hash, held);
    }
}
