//! The record of a run from which another one begins.

use std::fs;

use retouch_proto::files::{beside, put_in_place};
use retouch_proto::status::EventKind;
use retouch_proto::{RunConfig, RunFolder};
use rusqlite::Connection;

use super::identity::{self, Recorded};
use super::mend::{self, open_to_read};
use super::verify::{self, Search};
use super::{StoreError, tell, write};
use crate::machine::record::{Checkpoint, Entry};

/// What an old run knows. Nothing is written to its folder.
pub(crate) struct Origin {
    folder: RunFolder,
    connection: Connection,
    recorded: Recorded,
    search: Search,
}

impl Origin {
    /// Opens the newest whole record of a run folder; none if it has none.
    ///
    /// # Errors
    /// If the folder can't be read, or a newer program wrote it.
    pub(crate) fn open(folder: &RunFolder) -> Result<Option<Self>, StoreError> {
        let Some(path) = mend::newest_whole(folder)? else {
            return Ok(None);
        };
        let failed = |error| StoreError::sqlite(&path, error);
        let connection = open_to_read(&path).map_err(failed)?;
        let recorded = identity::recorded(&connection).map_err(failed)?;
        let search = verify::newest_whole(&connection, folder).map_err(failed)??;
        Ok(Some(Self {
            folder: folder.clone(),
            connection,
            recorded,
            search,
        }))
    }

    /// The old run's resolved run file.
    pub(crate) fn config_toml(&self) -> &str {
        self.recorded.config_toml.as_deref().unwrap_or_default()
    }

    /// The newest whole checkpoint; else what is wrong with those that it has.
    pub(crate) fn checkpoint(&self) -> Result<Checkpoint, Vec<String>> {
        let whole = self.search.whole.clone();
        let learned = whole.filter(|whole| whole.committed.iteration.0 > 0);
        learned.ok_or_else(|| self.search.problems.clone())
    }

    /// Puts a copy of the record into the new folder, taken back to the checkpoint, with the new run's settings.
    ///
    /// # Errors
    /// If it can't be written.
    pub(crate) fn begin(
        &self,
        new: &RunFolder,
        checkpoint: Checkpoint,
        config: &RunConfig,
        dataset: &str,
    ) -> Result<(), StoreError> {
        let record = new.record();
        let partial = beside(&record, "partial");
        let written = self
            .connection
            .execute("VACUUM INTO ?1", [partial.to_string_lossy()])
            .and_then(|_| Connection::open(&partial))
            .and_then(|mut copy| self.take_back(&mut copy, checkpoint, config, dataset));
        if let Err(error) = written {
            let _ = fs::remove_file(&partial);
            return Err(StoreError::sqlite(&record, error));
        }
        put_in_place(&partial, &record).map_err(|source| StoreError::io(&record, source))
    }

    fn take_back(
        &self,
        copy: &mut Connection,
        checkpoint: Checkpoint,
        config: &RunConfig,
        dataset: &str,
    ) -> rusqlite::Result<()> {
        let to = checkpoint.committed.iteration;
        let transaction = copy.transaction()?;
        let rewound = Entry::Rewound { from: to, to };
        write::entry(&transaction, &rewound)?;
        // The others' files are in the old folder.
        transaction.execute("DELETE FROM checkpoints WHERE iteration != ?1", [to.0])?;
        if self.recorded.dataset.as_deref() != Some(dataset) {
            // Rows have other numbers there.
            transaction.execute("DELETE FROM bans", [])?;
            let update = "UPDATE iterations SET next_position = 0 WHERE iteration = ?1 AND status = 'committed'";
            transaction.execute(update, [to.0])?;
        }
        // How the old run stands is its own affair.
        transaction.execute("DELETE FROM meta WHERE key = 'standing'", [])?;
        identity::note(&transaction, dataset, config)?;
        let old = self.folder.path().display();
        let message = format!("this run begins from checkpoint {to} of the run in {old}");
        tell(&transaction, EventKind::Control, message)?;
        transaction.commit()
    }
}
