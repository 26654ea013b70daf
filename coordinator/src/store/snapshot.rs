//! Copies of the record in the checkpoints: with a checkpoint's files they are all that a run needs
//! to go on elsewhere.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use retouch_proto::Iteration;
use rusqlite::{Connection, OpenFlags};
use tokio::sync::watch;

use super::{FILE_NAME, StoreError};

/// The run folder's folder of checkpoints.
const CHECKPOINTS: &str = "checkpoints";

/// Takes snapshots beside the run, one at a time; the last one is waited for at the end.
pub(super) struct Snapshots {
    path: PathBuf,
    running: Option<JoinHandle<()>>,
    taken: watch::Sender<Iteration>,
}

impl Snapshots {
    /// Of the record in this file.
    pub(super) fn new(path: PathBuf) -> Self {
        Self {
            path,
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
        let (path, taken) = (self.path.clone(), self.taken.clone());
        let snapshot = move || match take_for(&path, iteration) {
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

/// The folder of a checkpoint.
pub(crate) fn checkpoint_folder(run_dir: &Path, iteration: Iteration) -> PathBuf {
    run_dir.join(CHECKPOINTS).join(iteration.to_string())
}

/// Where in the run folder a checkpoint's snapshot is.
pub(crate) fn snapshot_name(iteration: Iteration) -> String {
    format!("{CHECKPOINTS}/{iteration}/{FILE_NAME}")
}

/// Takes the snapshot of the last checkpoint if the process died before it had one.
///
/// # Errors
/// If the record can't be read, or the copy can't be written.
pub(crate) fn take_missing_snapshot(run_dir: &Path, last: Iteration) -> Result<(), StoreError> {
    match run_dir.join(snapshot_name(last)).exists() {
        true => Ok(()),
        false => take_for(&run_dir.join(FILE_NAME), last),
    }
}

fn take_for(record: &Path, iteration: Iteration) -> Result<(), StoreError> {
    let folder = record
        .with_file_name(CHECKPOINTS)
        .join(iteration.to_string());
    fs::create_dir_all(&folder).map_err(|source| StoreError::Io {
        path: folder.clone(),
        source,
    })?;
    take(record, &folder.join(FILE_NAME))
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
    let checkpoints = fs::read_dir(folder.join(CHECKPOINTS)).ok()?;
    let iteration = |entry: &fs::DirEntry| entry.file_name().to_str()?.parse::<u32>().ok();
    let snapshots = checkpoints.flatten().filter_map(|entry| {
        let snapshot = entry.path().join(FILE_NAME);
        snapshot.exists().then_some((iteration(&entry)?, snapshot))
    });
    snapshots.max().map(|(_, snapshot)| snapshot)
}
