//! Copies of the record in the checkpoints: with a checkpoint's files they are all that a run needs
//! to go on elsewhere.

use std::fs;
use std::path::Path;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use retouch_proto::Iteration;
use retouch_proto::files::{beside, put_in_place};
use retouch_proto::run_folder::{CheckpointFile, RunFolder};
use rusqlite::{Connection, OpenFlags, OptionalExtension};
use tokio::sync::watch;

use super::mend::{check_pages, checkpoints, open_immutable};
use super::{StoreError, parsed, schema};
use crate::machine::record::Checkpoint;

/// How many checkpoints have a copy of the record: the last, and the one before it should that be damaged.
pub(crate) const RECORDS_KEPT: usize = 2;

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

    pub(super) fn wait(&mut self) {
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
    fs::create_dir_all(&checkpoint).map_err(|source| StoreError::io(&checkpoint, source))?;
    let copy = checkpoint.join(CheckpointFile::Record.file_name());
    take(&folder.record(), &copy)
}

/// Copies a record as it is now, whole, while others write to it.
///
/// # Errors
/// If it can't be read, or the copy can't be written.
pub(super) fn take(record: &Path, copy: &Path) -> Result<(), StoreError> {
    let partial = beside(copy, "partial");
    let io = |source| StoreError::io(copy, source);
    // Under another name until it is whole; SQLite refuses to copy over one that was cut short.
    if partial.exists() {
        fs::remove_file(&partial).map_err(io)?;
    }
    if let Err(error) = copy_whole(record, &partial) {
        // On a full disk it would take the last space.
        let _ = fs::remove_file(&partial);
        return Err(StoreError::sqlite(record, error));
    }
    put_in_place(&partial, copy).map_err(io)
}

fn copy_whole(record: &Path, to: &Path) -> rusqlite::Result<()> {
    let connection = Connection::open_with_flags(record, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    connection.busy_timeout(Duration::from_secs(5))?;
    // Not a copy of the file: the newest entries may be in the write-ahead log beside it.
    connection.execute("VACUUM INTO ?1", [to.to_string_lossy()])?;
    Ok(())
}

/// Deletes the copies in all but the newest checkpoints up to `newest`: with one in each, their sum would grow with the
/// square of the run's length. What they knew is in the newer ones.
///
/// # Errors
/// If the folder can't be read or written.
pub(crate) fn thin_out(folder: &RunFolder, newest: Iteration) -> Result<(), StoreError> {
    let copy = |iteration| folder.join(&CheckpointFile::Record.name(iteration));
    let there = checkpoints(folder)?.into_iter();
    let copies = there
        .filter(|iteration| *iteration <= newest)
        .map(copy)
        .filter(|copy| copy.exists());
    for copy in copies.skip(RECORDS_KEPT) {
        fs::remove_file(&copy).map_err(|source| StoreError::io(&copy, source))?;
    }
    Ok(())
}

/// The checkpoint of an iteration as a copy of the record has it, if that is whole; else what is wrong with it.
///
/// # Errors
/// If the file can't be read, or a newer program wrote it.
pub(crate) fn recorded_checkpoint(
    copy: &Path,
    iteration: Iteration,
) -> Result<Result<Checkpoint, String>, StoreError> {
    let query = "SELECT checkpoint FROM checkpoints WHERE iteration = ?1 ORDER BY id DESC LIMIT 1";
    let read = open_immutable(copy).and_then(|connection| {
        check_pages(&connection)?;
        if let Err(newer) = schema::check_version(&connection)? {
            return Ok(Err(newer));
        }
        let row = connection.query_row(query, [iteration.0], |row| row.get(0));
        row.optional().map(Ok)
    });
    let text: Option<String> = match read.map_err(|error| StoreError::sqlite(copy, error)) {
        Ok(found) => found?,
        Err(StoreError::Corrupt { problem, .. }) => return Ok(Err(problem)),
        // Without tables, say.
        Err(StoreError::Sqlite { source, .. }) => return Ok(Err(source.to_string())),
        Err(error) => return Err(error),
    };
    Ok(match text {
        None => Err(format!("it has no checkpoint {iteration}")),
        Some(text) => parsed("checkpoints", &text).map_err(|error| error.to_string()),
    })
}
