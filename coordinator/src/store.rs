//! The durable record: one SQLite file, one transaction per batch of inputs (A8).
//!
//! [`Store`] is the coordinator's: it writes what the machine says and loads what the machine
//! starts from. [`Reader`] is for reports and people, and may read while a run goes on.

mod error;
mod find;
mod load;
mod reader;
mod schema;
mod write;

use std::path::{Path, PathBuf};

use retouch_proto::RunConfig;
use retouch_proto::status::Event;
use rusqlite::{Connection, OptionalExtension, params};

pub use error::StoreError;
pub(crate) use find::Found;
pub use reader::{GroupRow, IterationRow, IterationStatus, Reader, ScoreRow};

use crate::machine::record::{Entry, Record};

/// The record's file in the run folder.
pub const FILE_NAME: &str = "run.db";

/// The run's record, open for writing; one owner.
pub struct Store {
    connection: Connection,
    path: PathBuf,
}

impl Store {
    /// Opens or creates the record in a run folder, counts the start, and loads what was recorded.
    ///
    /// # Errors
    /// If the file can't be read or written, has another schema, or belongs to a run that a
    /// changed configuration or dataset (`rows_hash`) can't go on with.
    pub fn open(
        folder: &Path,
        config: &RunConfig,
        rows_hash: &str,
    ) -> Result<(Self, Record), StoreError> {
        let path = folder.join(FILE_NAME);
        let opened = Connection::open(&path).map_err(|error| StoreError::sqlite(&path, error))?;
        let mut store = Self {
            connection: opened,
            path,
        };
        let incarnation = store.on(schema::prepare)??;
        store.check_identity(config, rows_hash)?;
        let record = store.on(|connection| load::record(connection, incarnation))??;
        Ok((store, record))
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
                differences: schema::differences(recorded, given),
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
            recorded == given
                || (key == "config" && schema::differences(recorded, given).is_empty())
        });
        if !same {
            return Err(other(&recorded.unwrap_or_default(), given));
        }
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
        })
    }

    /// The last events, oldest first.
    pub fn last_events(&mut self, count: usize) -> Result<Vec<Event>, StoreError> {
        self.on(|connection| reader::last_events(connection, count))
    }
}

#[cfg(test)]
mod tests;
