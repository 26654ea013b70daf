//! What can be wrong with a record.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use retouch_proto::files::{beside, is_full, is_lasting};

/// What SQLite needs at least: the log's index.
const ROOM_BYTES: usize = 32 << 10;

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
    #[error(
        "{path} is corrupt: {problem}; the next start of the coordinator mends it from a checkpoint's copy"
    )]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What SQLite says.
        problem: String,
    },
    /// It is damaged or missing, and so are the copies of it.
    #[error(
        "{path} {problem}, and no checkpoint has a whole copy of it{}; put it back from where the folder was copied \
         (run.db-wal belongs to it), or give another run_dir", list(.copies)
    )]
    Lost {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
        /// What is wrong with the copies.
        copies: Vec<String>,
    },
    /// There is nothing that the run could continue from.
    #[error(
        "no checkpoint is whole: {}; put the files back from where the folder was copied, or give another run_dir \
         (with checkpoint.url, it begins from the newest whole checkpoint there)", .problems.join(", ")
    )]
    NoWholeCheckpoint {
        /// What is wrong with them.
        problems: Vec<String>,
    },
    /// There is no room for it.
    #[error("{path} can't be written: its disk is full; free some space")]
    DiskFull {
        /// The file.
        path: PathBuf,
    },
    /// A file can't be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
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
        "the run folder belongs to a run with another configuration: {}; give the old values, or start a new run \
         from its last checkpoint with `retouch launch ... --fork NEW_FOLDER`", .differences.join(", ")
    )]
    OtherConfig {
        /// `key: recorded -> given`.
        differences: Vec<String>,
    },
}

fn list(copies: &[String]) -> String {
    match copies {
        [] => String::new(),
        copies => format!(" ({})", copies.join(", ")),
    }
}

/// Whether a file beside this one can be written.
fn has_room(path: &Path) -> bool {
    static TRIALS: AtomicU32 = AtomicU32::new(0);
    // Several threads and processes may try at the same time.
    let (process, trial) = (std::process::id(), TRIALS.fetch_add(1, Ordering::Relaxed));
    let trial = beside(path, &format!("room{process}-{trial}"));
    let written = fs::write(&trial, [0; ROOM_BYTES]).and_then(|()| File::open(&trial)?.sync_all());
    let _ = fs::remove_file(&trial);
    !written.is_err_and(|error| is_full(&error))
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
            // The next start mends the record, or says that nothing is there to mend it from.
            Self::DiskFull { .. } | Self::Corrupt { .. } => false,
            Self::SchemaVersion { .. }
            | Self::Lost { .. }
            | Self::NoWholeCheckpoint { .. }
            | Self::Damaged { .. }
            | Self::OtherDataset { .. }
            | Self::OtherConfig { .. } => true,
        }
    }

    pub(super) fn sqlite(path: &Path, source: rusqlite::Error) -> Self {
        use rusqlite::ErrorCode::{
            CannotOpen, DatabaseCorrupt, DiskFull, NotADatabase, SystemIoFailure,
        };
        let path = path.to_owned();
        match source.sqlite_error_code() {
            // So SQLite calls a quota that is used up, and a disk without room for the log's index.
            Some(SystemIoFailure | CannotOpen) if path.exists() && !has_room(&path) => {
                Self::DiskFull { path }
            }
            Some(DatabaseCorrupt | NotADatabase) => Self::Corrupt {
                path,
                problem: source.to_string(),
            },
            Some(DiskFull) => Self::DiskFull { path },
            _ => Self::Sqlite { path, source },
        }
    }

    pub(crate) fn io(path: &Path, source: io::Error) -> Self {
        let path = path.to_owned();
        match is_full(&source) {
            true => Self::DiskFull { path },
            false => Self::Io { path, source },
        }
    }

    pub(crate) fn damaged(what: &'static str, problem: impl ToString) -> Self {
        Self::Damaged {
            what,
            problem: problem.to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_next_start_mends_is_tried_again() {
        let path = PathBuf::from("run.db");
        let problem = "database disk image is malformed".to_owned();
        let (damaged, copies) = ((path.clone(), problem.clone()), Vec::new());
        assert!(!StoreError::Corrupt { path, problem }.is_lasting());
        let (path, problem) = damaged;
        let lost = StoreError::Lost {
            path,
            problem,
            copies,
        };
        assert!(lost.is_lasting());
    }
}
