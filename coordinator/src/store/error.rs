//! What can be wrong with a record.

use std::path::{Path, PathBuf};

/// Why a record can't be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// SQLite's own.
    #[error("{path}: {source}")]
    Sqlite {
        /// The file.
        path: PathBuf,
        /// What happened.
        source: rusqlite::Error,
    },
    /// Written by another version of the program.
    #[error("the record has schema version {found}, this program reads {expected}")]
    SchemaVersion {
        /// What the file says.
        found: i64,
        /// What would be right.
        expected: i64,
    },
    /// Something in it makes no sense.
    #[error("the record is damaged: {what}: {problem}")]
    Damaged {
        /// Where.
        what: &'static str,
        /// Why.
        problem: String,
    },
    /// The dataset changed.
    #[error(
        "the run folder belongs to a run on another dataset: its rows hash to {recorded}, those \
         given to {given}; give the old dataset or another run_dir"
    )]
    OtherDataset {
        /// What the run began with.
        recorded: String,
        /// What it was to go on with.
        given: String,
    },
    /// The configuration changed in a way that would make other samples.
    #[error(
        "the run folder belongs to a run with another configuration: {}; give the old values or \
         another run_dir", .differences.join(", ")
    )]
    OtherConfig {
        /// `key: recorded -> given`.
        differences: Vec<String>,
    },
}

impl StoreError {
    pub(super) fn sqlite(path: &Path, source: rusqlite::Error) -> Self {
        Self::Sqlite {
            path: path.to_owned(),
            source,
        }
    }

    pub(super) fn damaged(what: &'static str, problem: impl ToString) -> Self {
        Self::Damaged {
            what,
            problem: problem.to_string(),
        }
    }
}
