//! What makes a record the record of one run.

use retouch_proto::RunConfig;
use rusqlite::{Connection, OptionalExtension, params};

use super::StoreError;
use crate::settings;

/// The run that is to continue.
#[derive(Clone, Copy)]
pub(crate) struct Identity<'a> {
    /// The resolved run file.
    pub(crate) config: &'a RunConfig,
    /// The hash of the dataset's rows.
    pub(crate) dataset: &'a str,
}

/// The run that a record says it belongs to; a new record says nothing.
#[derive(Debug, Default)]
pub(super) struct Recorded {
    pub(super) dataset: Option<String>,
    pub(super) config_toml: Option<String>,
}

impl Identity<'_> {
    /// Refuses another run's record.
    pub(super) fn check(&self, recorded: &Recorded) -> Result<(), StoreError> {
        let other_dataset = |recorded: &&String| recorded.as_str() != self.dataset;
        if let Some(recorded) = recorded.dataset.as_ref().filter(other_dataset) {
            return Err(StoreError::OtherDataset {
                recorded: recorded.clone(),
                given: self.dataset.to_owned(),
            });
        }
        let Some(config_toml) = &recorded.config_toml else {
            return Ok(());
        };
        let differences = settings::differences(config_toml, self.config)
            .map_err(|problem| StoreError::damaged("meta.config", problem))?;
        if differences.is_empty() {
            return Ok(());
        }
        Err(StoreError::OtherConfig { differences })
    }
}

/// What a record says about itself.
pub(super) fn recorded(connection: &Connection) -> rusqlite::Result<Recorded> {
    let query = "SELECT value FROM meta WHERE key = ?1";
    let value = |key| {
        let found = connection.query_row(query, [key], |row| row.get(0));
        found.optional()
    };
    Ok(Recorded {
        dataset: value("dataset")?,
        config_toml: value("config")?,
    })
}

/// Notes whose record it is from now on.
pub(super) fn note(
    connection: &Connection,
    dataset: &str,
    config: &RunConfig,
) -> rusqlite::Result<()> {
    let insert = "INSERT OR REPLACE INTO meta (key, value) VALUES ('dataset', ?1), ('config', ?2)";
    let values = params![dataset, config.to_toml()];
    connection.execute(insert, values).map(drop)
}
