//! Copies of the record in the checkpoints: with a checkpoint's files they are all that a run needs
//! to go on elsewhere.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use retouch_proto::Iteration;
use retouch_proto::run_folder::{CheckpointFile, RunFolder};
use rusqlite::{Connection, OpenFlags};
use tokio::sync::watch;

use super::StoreError;

/// Takes snapshots beside the run, one at a time; the last one is waited for at the end.
pub(super) struct Snapshots {
    folder: RunFolder,
    running: Option<JoinHandle<()>>,
    taken: watch::Sender<Iteration>,
}

impl Snapshots {
    /// Of the record in this folder.
    pub(super) fn new(folder: RunFolder) -> Self {
        Self {
            folder,
            running: None,
            taken: watch::Sender::new(Iteration(0)),
        }
    }

    /// Tells the newest checkpoint that has its snapshot, from now until the record is closed.
    pub(super) fn taken(&self) -> watch::Receiver<Iteration> {
        self.taken.subscribe()
    }

    /// Begins a snapshot for a checkpoint. A run does not end because of a failed one: the record
    /// itself is safe.
    pub(super) fn begin(&mut self, iteration: Iteration) {
        // The run waits for the one before rather than have copies of the record pile up on a slow disk (A7).
        self.wait();
        let (folder, taken) = (self.folder.clone(), self.taken.clone());
        let snapshot = move || match take_for(&folder, iteration) {
            Ok(()) => drop(taken.send_replace(iteration)),
            Err(problem) => tracing::warn!(
                iteration = iteration.0,
                "no snapshot of the record: {problem}"
            ),
        };
        self.running = Some(thread::spawn(snapshot));
    }

    fn wait(&mut self) {
        if let Some(running) = self.running.take() {
            // What went wrong in it has been told.
            let _ = running.join();
        }
    }
}

impl Drop for Snapshots {
    fn drop(&mut self) {
        self.wait();
    }
}

/// Takes the snapshot of the last checkpoint if the process died before it had one.
///
/// # Errors
/// If the record can't be read, or the copy can't be written.
pub(crate) fn take_missing_snapshot(folder: &RunFolder, last: Iteration) -> Result<(), StoreError> {
    match folder.join(&CheckpointFile::Record.name(last)).exists() {
        true => Ok(()),
        false => take_for(folder, last),
    }
}

fn take_for(folder: &RunFolder, iteration: Iteration) -> Result<(), StoreError> {
    let checkpoint = folder.checkpoint(iteration);
    fs::create_dir_all(&checkpoint).map_err(|source| StoreError::Io {
        path: checkpoint.clone(),
        source,
    })?;
    let copy = checkpoint.join(CheckpointFile::Record.file_name());
    take(&folder.record(), &copy)
}

/// Copies a record as it is now, whole, while others write to it.
///
/// # Errors
/// If it can't be read, or the copy can't be written.
pub(super) fn take(record: &Path, copy: &Path) -> Result<(), StoreError> {
    let partial = copy.with_extension("partial");
    let failed = |error| StoreError::sqlite(record, error);
    let io = |source| StoreError::Io {
        path: copy.to_owned(),
        source,
    };
    // Under another name until it is whole; SQLite refuses to copy over one that was cut short.
    if partial.exists() {
        fs::remove_file(&partial).map_err(io)?;
    }
    let connection =
        Connection::open_with_flags(record, OpenFlags::SQLITE_OPEN_READ_ONLY).map_err(failed)?;
    connection
        .busy_timeout(Duration::from_secs(5))
        .map_err(failed)?;
    // Not a copy of the file: the newest entries may be in the write-ahead log beside it.
    connection
        .execute("VACUUM INTO ?1", [partial.to_string_lossy()])
        .map_err(failed)?;
    fs::File::open(&partial)
        .and_then(|file| file.sync_all())
        .and_then(|()| fs::rename(&partial, copy))
        .map_err(io)
}

/// The snapshot of the last checkpoint in a run folder that has one.
pub(super) fn newest_snapshot(folder: &Path) -> Option<PathBuf> {
    let checkpoints = fs::read_dir(RunFolder::new(folder).checkpoints()).ok()?;
    let iteration = |entry: &fs::DirEntry| entry.file_name().to_str()?.parse::<u32>().ok();
    let snapshots = checkpoints.flatten().filter_map(|entry| {
        let snapshot = entry.path().join(CheckpointFile::Record.file_name());
        snapshot.exists().then_some((iteration(&entry)?, snapshot))
    });
    snapshots.max().map(|(_, snapshot)| snapshot)
}
