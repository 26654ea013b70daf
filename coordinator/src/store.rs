//! The durable record: one SQLite file, one transaction per batch of inputs (A8).
//!
//! [`Store`] is the coordinator's: it writes what the machine says and loads what the machine
//! starts from. [`Reader`] is for reports and people, and may read while a run goes on. RECORD.md says
//! what is in the tables.

mod error;
mod find;
mod load;
mod reader;
mod schema;
mod snapshot;
mod write;

use std::path::{Path, PathBuf};

use retouch_proto::status::Event;
use retouch_proto::{Iteration, RunConfig, RunFolder};
use rusqlite::{Connection, OptionalExtension, params};
use tokio::sync::watch;

pub use error::StoreError;
pub(crate) use find::Found;
pub use reader::Reader;
pub(crate) use reader::ScoreRow;
pub(crate) use schema::differences;
pub(crate) use snapshot::take_missing_snapshot;

use self::snapshot::Snapshots;
use crate::machine::record::{Entry, Record};

/// The run's record, open for writing; one owner.
pub struct Store {
    /// Dropped before the connection, and waits for the last snapshot: SQLite folds its log into the record only when
    /// the last connection closes, and a snapshot's may only read.
    snapshots: Snapshots,
    connection: Connection,
    path: PathBuf,
}

impl Store {
    /// Opens or creates the record in a run folder, counts the start, and loads what was recorded.
    ///
    /// # Errors
    /// If the file can't be read or written, is corrupt, was written by a newer program, or belongs
    /// to a run that a changed configuration or dataset (`rows_hash`) can't go on with.
    pub fn open(
        folder: &Path,
        config: &RunConfig,
        rows_hash: &str,
    ) -> Result<(Self, Record), StoreError> {
        let folder = RunFolder::new(folder);
        let path = folder.record();
        let opened = Connection::open(&path).map_err(|error| StoreError::sqlite(&path, error))?;
        let mut store = Self {
            connection: opened,
            snapshots: Snapshots::new(folder),
            path,
        };
        // First of all, so that a damaged record is neither copied as if it were whole nor written to.
        store.check_pages()?;
        store.keep_old_schema()?;
        let incarnation = store.on(schema::prepare)??;
        store.check_identity(config, rows_hash)?;
        let record = store.on(|connection| load::record(connection, incarnation))??;
        Ok((store, record))
    }

    /// What was damaged from outside is better found now than met in the middle of a run.
    fn check_pages(&mut self) -> Result<(), StoreError> {
        let query = "PRAGMA quick_check(1)";
        let found: String =
            self.on(|connection| connection.query_row(query, [], |row| row.get(0)))?;
        match found.as_str() {
            "ok" => Ok(()),
            _ => Err(StoreError::corrupt(&self.path, found)),
        }
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

    fn check_identity(&mut self, config: &RunConfig, rows_hash: &str) -> Result<(), StoreError> {
        self.check_or_set("dataset", rows_hash, |recorded, given| {
            StoreError::OtherDataset {
                recorded: recorded.to_owned(),
                given: given.to_owned(),
            }
        })?;
        self.check_or_set("config", &config.to_toml(), |recorded, given| {
            StoreError::OtherConfig {
                differences: differences(recorded, given),
            }
        })
    }

    fn check_or_set(
        &mut self,
        key: &str,
        given: &str,
        other: impl FnOnce(&str, &str) -> StoreError,
    ) -> Result<(), StoreError> {
        let query = "SELECT value FROM meta WHERE key = ?1";
        let recorded: Option<String> = self.on(|connection| {
            connection
                .query_row(query, [key], |row| row.get(0))
                .optional()
        })?;
        let same = recorded.as_ref().is_none_or(|recorded| {
            recorded == given || (key == "config" && differences(recorded, given).is_empty())
        });
        if !same {
            return Err(other(&recorded.unwrap_or_default(), given));
        }
        // Also if nothing differs that matters: the record tells with which iterations and cluster the run goes on.
        let insert = "INSERT OR REPLACE INTO meta (key, value) VALUES (?1, ?2)";
        self.on(|connection| connection.execute(insert, params![key, given]))?;
        Ok(())
    }

    /// Makes these durable, all or none.
    ///
    /// # Errors
    /// If the file can't be written (a full disk, say): the coordinator must then die, since what
    /// it knows is no longer what is recorded.
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

    /// Tells the newest checkpoint that is complete, its snapshot of the record included. It closes with
    /// the store, once the last one is.
    pub(crate) fn complete_checkpoints(&self) -> watch::Receiver<Iteration> {
        self.snapshots.taken()
    }

    /// The last events, oldest first.
    pub fn last_events(&mut self, count: usize) -> Result<Vec<Event>, StoreError> {
        self.on(|connection| reader::last_events(connection, count))
    }
}

#[cfg(test)]
mod tests;
