//! What can be wrong with checkpoints at a URL.

use std::io;
use std::path::{Path, PathBuf};

use retouch_proto::files::is_lasting;
use retouch_proto::{ContentHash, Iteration};

use crate::store::StoreError;

/// Why a checkpoint could not be put away or brought back.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// The URL.
    #[error("checkpoint.url {url:?} can't be used: {reason}")]
    Url {
        /// As given.
        url: String,
        /// Why.
        reason: String,
    },
    /// The store refused.
    #[error("{what}: {source}")]
    Store {
        /// The object, with its URL.
        what: String,
        /// What the store says.
        source: object_store::Error,
    },
    /// A file here.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What happened.
        source: io::Error,
    },
    /// What is there is not what was put there.
    #[error("{what} is torn: {reason}")]
    Torn {
        /// The object with its URL, or the file.
        what: String,
        /// What is wrong with it.
        reason: String,
    },
    /// It belongs to another run.
    #[error(
        "checkpoint {iteration} at {url} is another run's: {}; give the values that it was made with, or \
         another checkpoint.url", .differences.join(", ")
    )]
    Foreign {
        /// Which one.
        iteration: Iteration,
        /// The archive.
        url: String,
        /// `key: there -> here`.
        differences: Vec<String>,
    },
    /// A snapshot of the record.
    #[error(transparent)]
    Record(#[from] StoreError),
}

impl ArchiveError {
    /// Whether another start would fail the same way. What a network or a store's limits prevent may work by then.
    pub fn is_lasting(&self) -> bool {
        use object_store::Error::{
            InvalidPath, NotFound, NotImplemented, NotSupported, PermissionDenied, Unauthenticated,
            UnknownConfigurationKey,
        };
        match self {
            Self::Store { source, .. } => matches!(
                source,
                InvalidPath { .. }
                    | NotFound { .. }
                    | NotImplemented { .. }
                    | NotSupported { .. }
                    | PermissionDenied { .. }
                    | Unauthenticated { .. }
                    | UnknownConfigurationKey { .. }
            ),
            Self::Io { source, .. } => is_lasting(source),
            Self::Record(error) => error.is_lasting(),
            Self::Url { .. } | Self::Torn { .. } | Self::Foreign { .. } => true,
        }
    }

    pub(super) fn io(path: &Path) -> impl FnOnce(io::Error) -> Self + '_ {
        |source| Self::Io {
            path: path.to_owned(),
            source,
        }
    }

    pub(super) fn torn(what: String, reason: String) -> Self {
        Self::Torn { what, reason }
    }

    pub(super) fn other_content(what: String, found: ContentHash, expected: ContentHash) -> Self {
        let reason = format!("its content hashes to {found}, expected {expected}");
        Self::torn(what, reason)
    }
}
