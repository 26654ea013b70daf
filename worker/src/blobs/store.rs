//! Holds blobs in memory, and in files once memory is full.

use std::{
    fs::File,
    io::{self, Write},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard},
};

use bytes::Bytes;
use nix::fcntl::{Flock, FlockArg};
use retouch_proto::{ContentHash, Iteration, files::is_full};
use thiserror::Error;

use super::entries::{Entries, Place, Retention};

/// Where and how much a store may hold (A7).
#[derive(Clone, Debug)]
pub struct BlobStoreOptions {
    /// A folder of this process alone; files of an earlier life are deleted.
    pub folder: PathBuf,
    /// Beyond this, the least recently used blobs go to files.
    pub memory_bytes_max: u64,
    /// Beyond this, no blob is taken.
    pub disk_bytes_max: u64,
}

/// A blob that could not be stored or read.
#[derive(Debug, Error)]
pub enum BlobStoreError {
    /// The folder belongs to a living process.
    #[error("blob folder {} is in use by another process", folder.display())]
    InUse {
        /// The folder.
        folder: PathBuf,
    },
    /// Files are full.
    #[error("blob folder {} holds {held} bytes: {size} more would exceed the {limit} that are allowed", folder.display())]
    Full {
        /// The folder.
        folder: PathBuf,
        /// What is in it.
        held: u64,
        /// Size of the blob that was to go there.
        size: u64,
        /// The configured limit.
        limit: u64,
    },
    /// The disk has no room for a blob, whatever the limit.
    #[error("cannot write {size} bytes to {}: {source}; free some space there", folder.display())]
    DiskFull {
        /// The folder.
        folder: PathBuf,
        /// Size of the blob that was to go there.
        size: u64,
        /// What the disk said.
        source: io::Error,
    },
    /// A file could not be written or read.
    #[error("blob file {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file has changed since it was written.
    #[error("blob file {} no longer has hash {hash}", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What it should hash to.
        hash: ContentHash,
    },
}

/// Blobs under their content hash; clones share one store.
#[derive(Clone, Debug)]
pub struct BlobStore(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    options: BlobStoreOptions,
    entries: Mutex<Entries>,
    /// One thread at a time puts a blob in its place, so that none is promised the same room twice.
    placing: Mutex<()>,
    _lock: Flock<File>,
}

/// The bytes of a blob as they are held.
#[derive(Debug)]
pub enum BlobReader {
    /// In memory.
    Memory(Bytes),
    /// In an open file, readable even if the blob is dropped meanwhile.
    File(File, u64),
}

impl BlobReader {
    /// Length of the blob.
    pub fn size_bytes(&self) -> u64 {
        match self {
            Self::Memory(bytes) => bytes.len() as u64,
            Self::File(_, size) => *size,
        }
    }
}

/// What came and went since the last time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Blobs that are held now and were not.
    pub added: Vec<ContentHash>,
    /// Blobs that are not held any more.
    pub dropped: Vec<ContentHash>,
}

impl BlobStore {
    /// Opens an empty store in the folder.
    ///
    /// # Errors
    ///
    /// If the folder can't be written or another process uses it.
    pub fn open(options: BlobStoreOptions) -> Result<Self, BlobStoreError> {
        let folder = &options.folder;
        let io = |path: &Path| {
            let path = path.to_owned();
            move |source| BlobStoreError::Io { path, source }
        };
        std::fs::create_dir_all(folder).map_err(io(folder))?;
        let lock = lock_folder(folder)?;
        // An earlier life's files are not adopted: each would have to be read and hashed before it could be
        // offered, and the coordinator has counted them as lost.
        for file in std::fs::read_dir(folder).map_err(io(folder))? {
            let path = file.map_err(io(folder))?.path();
            if path.extension().is_some_and(|e| e == "blob" || e == "part") {
                std::fs::remove_file(&path).map_err(io(&path))?;
            }
        }
        let (entries, placing) = (Mutex::default(), Mutex::default());
        Ok(Self(Arc::new(Inner {
            options,
            entries,
            placing,
            _lock: lock,
        })))
    }

    /// Takes the bytes and gives their hash.
    ///
    /// # Errors
    ///
    /// If memory is full and files are too, or can't be written; then everything is as it was before.
    pub fn put(&self, bytes: Bytes, retention: Retention) -> Result<ContentHash, BlobStoreError> {
        let hash = ContentHash::of(&bytes);
        self.put_verified(hash, bytes, retention)?;
        Ok(hash)
    }

    /// Takes bytes whose hash was checked already.
    pub(super) fn put_verified(
        &self,
        hash: ContentHash,
        bytes: Bytes,
        retention: Retention,
    ) -> Result<(), BlobStoreError> {
        let size = bytes.len() as u64;
        let _one = self.0.placing.lock().unwrap_or_else(|e| e.into_inner());
        if self.extend(&hash, retention) {
            return Ok(());
        }
        self.check_space(&hash, size)?;
        // Room comes first: a disk that is full then costs this blob alone, and memory keeps to its limit.
        let place = if self.make_room(size)? {
            Place::Memory(bytes)
        } else {
            self.write_file(&hash, &bytes)?;
            Place::Disk
        };
        self.entries().insert(hash, place, size, retention);
        Ok(())
    }

    /// The blob's bytes, none if it is not held.
    ///
    /// # Errors
    ///
    /// If its file can't be read or has changed; the blob is dropped then.
    pub fn get(&self, hash: &ContentHash) -> Result<Option<Bytes>, BlobStoreError> {
        // A statement of its own, here and in `reader`: in the `match` the lock would be held until its end, while a file
        // is read, and while `release` waits for it.
        let touched = self.entries().touch(hash);
        match touched {
            None => return Ok(None),
            Some((Place::Memory(bytes), _)) => return Ok(Some(bytes)),
            Some((Place::Disk, _)) => {}
        }
        self.read_file(hash)
            .map(Some)
            .inspect_err(|_| self.release(hash))
    }

    /// The blob for sending, none if it is not held.
    ///
    /// # Errors
    ///
    /// If its file can't be opened; the blob is dropped then.
    pub fn reader(&self, hash: &ContentHash) -> Result<Option<BlobReader>, BlobStoreError> {
        let touched = self.entries().touch(hash);
        match touched {
            None => Ok(None),
            Some((Place::Memory(bytes), _)) => Ok(Some(BlobReader::Memory(bytes))),
            Some((Place::Disk, size)) => {
                let path = self.path(hash);
                let file = File::open(&path).map_err(|source| BlobStoreError::Io { path, source });
                file.map(|file| Some(BlobReader::File(file, size)))
                    .inspect_err(|_| self.release(hash))
            }
        }
    }

    /// Whether the blob is held.
    pub(super) fn holds(&self, hash: &ContentHash) -> bool {
        self.entries().holds(hash)
    }

    /// Keeps a held blob at least this long; whether it is held.
    pub fn extend(&self, hash: &ContentHash, retention: Retention) -> bool {
        self.entries().extend(hash, retention)
    }

    /// Drops the blob, whatever its retention.
    pub fn release(&self, hash: &ContentHash) {
        let has_file = self.entries().remove(hash);
        if has_file {
            self.delete_file(hash);
        }
    }

    /// Drops all blobs that are kept only until `committed` or an earlier iteration.
    pub fn commit(&self, committed: Iteration) {
        let expired = self.entries().expired(committed);
        for hash in &expired {
            self.release(hash);
        }
    }

    /// All blobs that are held.
    pub fn hashes(&self) -> Vec<ContentHash> {
        self.entries().hashes()
    }

    /// What came and went since this was last called.
    pub fn take_changes(&self) -> Changes {
        let mut changes = Changes::default();
        for (hash, held) in self.entries().take_changes() {
            if held {
                changes.added.push(hash)
            } else {
                changes.dropped.push(hash)
            }
        }
        changes
    }

    pub(super) fn check_space(&self, hash: &ContentHash, size: u64) -> Result<(), BlobStoreError> {
        let mut entries = self.entries();
        let BlobStoreOptions {
            memory_bytes_max,
            disk_bytes_max,
            folder,
        } = &self.0.options;
        // One budget: what memory has no room for goes to files. A blob that is held needs no more of it.
        let held = entries.disk_bytes();
        let total = held + entries.memory_bytes() + size;
        if total <= memory_bytes_max + disk_bytes_max || entries.touch(hash).is_some() {
            return Ok(());
        }
        Err(BlobStoreError::Full {
            folder: folder.clone(),
            held,
            size,
            limit: *disk_bytes_max,
        })
    }

    /// Moves blobs to files until there is room for so many bytes in memory; false if there never will be.
    fn make_room(&self, size: u64) -> Result<bool, BlobStoreError> {
        if size > self.0.options.memory_bytes_max {
            return Ok(false);
        }
        // The entries stay unlocked while a file is written.
        while let Some((hash, bytes)) = self.excess(size) {
            self.write_file(&hash, &bytes)?;
            // Dropped while it was written: no entry is left that would ever delete the file.
            if !self.entries().moved_to_disk(&hash) {
                self.delete_file(&hash);
            }
        }
        Ok(true)
    }

    fn excess(&self, size: u64) -> Option<(ContentHash, Bytes)> {
        let entries = self.entries();
        if entries.memory_bytes() + size <= self.0.options.memory_bytes_max {
            return None;
        }
        entries.coldest()
    }

    /// The whole file or none.
    fn write_file(&self, hash: &ContentHash, bytes: &Bytes) -> Result<(), BlobStoreError> {
        let path = self.path(hash);
        let partial = path.with_extension("part");
        let written = File::create(&partial)
            .and_then(|mut file| file.write_all(bytes))
            .and_then(|()| std::fs::rename(&partial, &path));
        written.map_err(|source| {
            // On a full disk every byte of it is in somebody's way.
            let _ = std::fs::remove_file(&partial);
            match is_full(&source) {
                true => BlobStoreError::DiskFull {
                    folder: self.0.options.folder.clone(),
                    size: bytes.len() as u64,
                    source,
                },
                false => BlobStoreError::Io { path, source },
            }
        })
    }

    fn read_file(&self, hash: &ContentHash) -> Result<Bytes, BlobStoreError> {
        let path = self.path(hash);
        match std::fs::read(&path) {
            Ok(bytes) if ContentHash::of(&bytes) == *hash => Ok(bytes.into()),
            Ok(_) => Err(BlobStoreError::Corrupt { path, hash: *hash }),
            Err(source) => Err(BlobStoreError::Io { path, source }),
        }
    }

    fn delete_file(&self, hash: &ContentHash) {
        let path = self.path(hash);
        if let Err(error) = std::fs::remove_file(&path) {
            tracing::warn!(path = %path.display(), %error, "a dropped blob's file could not be deleted");
        }
    }

    fn path(&self, hash: &ContentHash) -> PathBuf {
        self.0.options.folder.join(format!("{hash}.blob"))
    }

    pub(super) fn entries(&self) -> MutexGuard<'_, Entries> {
        self.0.entries.lock().unwrap_or_else(|e| e.into_inner())
    }
}

fn lock_folder(folder: &Path) -> Result<Flock<File>, BlobStoreError> {
    let path = folder.join("lock");
    let file = File::create(&path).map_err(|source| BlobStoreError::Io { path, source })?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|_| BlobStoreError::InUse {
        folder: folder.to_owned(),
    })
}
