//! What can be wrong with a record.

use std::path::{Path, PathBuf};

use retouch_proto::files::is_lasting;

use super::snapshot::newest_snapshot;

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
    /// Written by a newer version of the program.
    #[error(
        "the record has schema version {found}, this program knows versions up to {newest}; take \
         the program that wrote it, or a newer one"
    )]
    SchemaVersion {
        /// What the file says.
        found: i64,
        /// The newest that is known.
        newest: i64,
    },
    /// The file was damaged from outside.
    #[error("{path} is corrupt: {problem}; {}", advice(.snapshot.as_deref()))]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What SQLite says.
        problem: String,
        /// The newest snapshot of it.
        snapshot: Option<PathBuf>,
    },
    /// A copy of it can't be written.
    #[error("{path}: {source}")]
    Io {
        /// The copy.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
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

/// What can be done about a corrupt record.
fn advice(snapshot: Option<&Path>) -> String {
    match snapshot {
        Some(snapshot) => format!(
            "move it and the files beside it (-wal, -shm) away and copy {} in its place: the run goes on from there",
            snapshot.display()
        ),
        None => "there is no snapshot of it under checkpoints; give another run_dir".to_owned(),
    }
}

impl StoreError {
    /// Whether another start would fail the same way. SQLite's own errors come from the disk, which may have room or
    /// answer again by then.
    pub fn is_lasting(&self) -> bool {
        use rusqlite::ErrorCode::{PermissionDenied, ReadOnly};
        match self {
            Self::Sqlite { source, .. } => {
                matches!(
                    source.sqlite_error_code(),
                    Some(PermissionDenied | ReadOnly)
                )
            }
            Self::Io { source, .. } => is_lasting(source),
            Self::SchemaVersion { .. }
            | Self::Corrupt { .. }
            | Self::Damaged { .. }
            | Self::OtherDataset { .. }
            | Self::OtherConfig { .. } => true,
        }
    }

    pub(super) fn sqlite(path: &Path, source: rusqlite::Error) -> Self {
        use rusqlite::ErrorCode::{DatabaseCorrupt, NotADatabase};
        if matches!(
            source.sqlite_error_code(),
            Some(DatabaseCorrupt | NotADatabase)
        ) {
            return Self::corrupt(path, source.to_string());
        }
        Self::Sqlite {
            path: path.to_owned(),
            source,
        }
    }

    pub(super) fn corrupt(path: &Path, problem: String) -> Self {
        Self::Corrupt {
            path: path.to_owned(),
            problem,
            snapshot: path.parent().and_then(newest_snapshot),
        }
    }

    pub(super) fn damaged(what: &'static str, problem: impl ToString) -> Self {
        Self::Damaged {
            what,
            problem: problem.to_string(),
        }
    }
}
