//! The durable record: one SQLite file, one transaction per batch of inputs (A8).
//!
//! [`Store`] is the coordinator's: it writes what the machine says and loads what the machine
//! starts from. [`Reader`] is for reports and people, and may read while a run goes on. RECORD.md says
//! what is in the tables.

mod error;
mod find;
mod identity;
mod load;
mod mend;
mod origin;
mod reader;
mod recorded;
mod schema;
mod snapshot;
mod verify;
mod write;

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use retouch_proto::status::{Event, EventKind, IterationMetrics};
use retouch_proto::{Iteration, RunConfig, RunFolder};
use rusqlite::{Connection, OpenFlags};
use serde::de::DeserializeOwned;
use tokio::sync::watch;

pub use error::StoreError;
pub(crate) use find::Found;
pub(crate) use identity::Identity;
pub(crate) use mend::{has_nothing, put_record};
pub(crate) use origin::Origin;
pub use reader::Reader;
pub(crate) use reader::ScoreRow;
pub(crate) use snapshot::{RECORDS_KEPT, recorded_checkpoint, take_missing_snapshot, thin_out};

use self::snapshot::Snapshots;
use crate::machine::record::{Checkpoint, Entry, Record};

/// The run's record, open for writing; one owner.
pub struct Store {
    /// The last one is waited for when the store is dropped: SQLite folds its log into the record only when the last
    /// connection closes, and a snapshot's may only read.
    snapshots: Snapshots,
    connection: Connection,
    path: PathBuf,
}

impl Store {
    /// Opens or creates the record in a run folder, counts the start, and loads what was recorded.
    ///
    /// # Errors
    /// If the file can't be read or written, was written by a newer program, or belongs to a run that a changed
    /// configuration or dataset (`rows_hash`) can't go on with; or if it or all checkpoints are damaged, and nothing
    /// whole is there to mend it from.
    pub fn open(
        folder: &Path,
        config: &RunConfig,
        rows_hash: &str,
    ) -> Result<(Self, Record), StoreError> {
        let folder = RunFolder::new(folder);
        let path = folder.record();
        let identity = Identity {
            config,
            dataset: rows_hash,
        };
        // First of all, so that a damaged record is neither copied as if it were whole nor written to.
        let mended = mend::mend(&folder, &identity)?;
        let opened = Connection::open(&path).map_err(|error| StoreError::sqlite(&path, error))?;
        let mut store = Self {
            connection: opened,
            snapshots: Snapshots::new(folder.clone()),
            path,
        };
        store.keep_old_schema()?;
        let incarnation = store.on(schema::prepare)??;
        store.check_identity(&identity)?;
        let is_over = store.on(|connection| last_committed(connection))? >= config.iterations;
        let settled = match is_over {
            // A run that is over needs no state.
            true => None,
            false => {
                store.on(|connection| verify::settle_on_whole_checkpoint(connection, &folder))??
            }
        };
        for done in mended.into_iter().chain(settled) {
            tracing::warn!("{done}");
            store.on(|connection| tell(connection, EventKind::Mended, done))?;
        }
        let record = store.on(|connection| load::record(connection, incarnation))??;
        Ok((store, record))
    }

    /// A record that is about to be brought up to another schema is kept as it was beside it.
    fn keep_old_schema(&mut self) -> Result<(), StoreError> {
        let version = self.on(|connection| schema::version(connection))?;
        let kept = self.path.with_extension(format!("db.schema{version}"));
        if schema::is_old(version) && !kept.exists() {
            snapshot::take(&self.path, &kept)?;
        }
        Ok(())
    }

    /// Runs a database operation, and says which file if it fails.
    fn on<T>(
        &mut self,
        operation: impl FnOnce(&mut Connection) -> rusqlite::Result<T>,
    ) -> Result<T, StoreError> {
        operation(&mut self.connection).map_err(|error| StoreError::sqlite(&self.path, error))
    }

    /// Refuses a record of another run, and notes with which settings this one continues.
    fn check_identity(&mut self, identity: &Identity<'_>) -> Result<(), StoreError> {
        let recorded = self.on(|connection| identity::recorded(connection))?;
        identity.check(&recorded)?;
        self.on(|connection| identity::note(connection, identity.dataset, identity.config))
    }

    /// Makes these durable, all or none.
    ///
    /// # Errors
    /// If the file can't be written: the coordinator must then die, since what it knows is no longer what is recorded.
    /// On a [full disk](StoreError::DiskFull) nothing is written, and the same entries can be tried again.
    pub fn write(&mut self, entries: &[Entry]) -> Result<(), StoreError> {
        if entries.is_empty() {
            return Ok(());
        }
        self.on(|connection| {
            let transaction = connection.transaction()?;
            for entry in entries {
                write::entry(&transaction, entry)?;
            }
            transaction.commit()
        })?;
        // Once they are committed: a snapshot must hold the checkpoint that it lies beside.
        let checkpoints = entries.iter().filter_map(|entry| match entry {
            Entry::Checkpointed(checkpoint) => Some(checkpoint.committed.iteration),
            _ => None,
        });
        checkpoints.for_each(|iteration| self.snapshots.begin(iteration));
        Ok(())
    }

    /// Gives a run that has not begun a checkpoint to begin from, and tells so; gives what there is to go on from then.
    ///
    /// # Errors
    /// As [`Store::write`].
    pub(crate) fn begin_from(
        &mut self,
        checkpoint: Checkpoint,
        incarnation: u32,
        message: String,
    ) -> Result<Record, StoreError> {
        self.write(&[Entry::Checkpointed(checkpoint)])?;
        self.on(|connection| tell(connection, EventKind::Control, message))?;
        self.on(|connection| load::record(connection, incarnation))?
    }

    /// Tells the newest checkpoint that is complete, its snapshot of the record included. It closes with
    /// the store, once the last one is.
    pub(crate) fn complete_checkpoints(&self) -> watch::Receiver<Iteration> {
        self.snapshots.taken()
    }

    /// Metrics of committed iterations, oldest first, without rewound attempts.
    pub(crate) fn iterations(&mut self) -> Result<Vec<IterationMetrics>, StoreError> {
        self.on(|connection| reader::iteration_metrics(connection, reader::ALL))?
    }

    /// The last events, oldest first.
    pub fn last_events(&mut self, count: usize) -> Result<Vec<Event>, StoreError> {
        self.on(|connection| reader::last_events(connection, count))
    }
}

type Loaded<T> = rusqlite::Result<Result<T, StoreError>>;

fn parsed<T: DeserializeOwned>(what: &'static str, text: &str) -> Result<T, StoreError> {
    serde_json::from_str(text).map_err(|error| StoreError::damaged(what, error))
}

fn last_committed(connection: &Connection) -> rusqlite::Result<u32> {
    let query = "SELECT coalesce(max(iteration), 0) FROM iterations WHERE status = 'committed'";
    connection.query_row(query, [], |row| row.get(0))
}

/// Leaves a record that no coordinator has open any more as one file, and so that readers put none beside it: then a
/// copy of `run.db` is a copy of the record. Not while others read it; the next coordinator's end is as good.
///
/// # Errors
/// If it is in use, or can't be written.
pub(crate) fn fold(folder: &RunFolder) -> Result<(), StoreError> {
    let path = folder.record();
    let opened = Connection::open_with_flags(&path, OpenFlags::SQLITE_OPEN_READ_WRITE);
    let folded = opened.and_then(|connection| one_file(&connection));
    folded.map_err(|error| StoreError::sqlite(&path, error))
}

fn one_file(connection: &Connection) -> rusqlite::Result<()> {
    connection.pragma_update(None, "journal_mode", "DELETE")
}

/// Records an event in a record that no coordinator has open.
///
/// # Errors
/// If it can't be written.
pub(crate) fn note(folder: &RunFolder, message: String) -> Result<(), StoreError> {
    let path = folder.record();
    let opened = Connection::open(&path);
    let told = opened.and_then(|connection| tell(&connection, EventKind::Mended, message));
    told.map_err(|error| StoreError::sqlite(&path, error))
}

/// Records an event of the store's own, before the machine that numbers them is there.
fn tell(connection: &Connection, kind: EventKind, message: String) -> rusqlite::Result<()> {
    let last = "SELECT coalesce(max(sequence), 0) FROM events";
    let last: i64 = connection.query_row(last, [], |row| row.get(0))?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let event = Event {
        sequence: last.cast_unsigned() + 1,
        time_unix_ms: now.unwrap_or_default().as_millis() as u64,
        iteration: Iteration(last_committed(connection)?).next(),
        kind,
        message,
    };
    write::entry(connection, &Entry::Event(event))
}

impl Drop for Store {
    fn drop(&mut self) {
        self.snapshots.wait();
        // Readers are not waited for; the coordinator's end folds it once more.
        let _ = self.connection.busy_timeout(Duration::ZERO);
        let _ = one_file(&self.connection);
    }
}

#[cfg(test)]
pub(crate) mod fixture;
#[cfg(test)]
mod tests;
