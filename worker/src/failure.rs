//! What trouble of a worker's own means for its task: the one place where it becomes a failure.

use retouch_proto::task::TaskFailure;

use crate::{
    blobs::{BlobStoreError, FetchError},
    device::DeviceError,
};

impl From<BlobStoreError> for TaskFailure {
    fn from(error: BlobStoreError) -> Self {
        match error {
            BlobStoreError::DiskFull { .. } => Self::disk_full(error),
            // Commits make room, except for a blob that is too large for any.
            BlobStoreError::Full { size, limit, .. } if size <= limit => Self::disk_full(error),
            _ => Self::retryable(error),
        }
    }
}

impl From<FetchError> for TaskFailure {
    fn from(error: FetchError) -> Self {
        match error {
            FetchError::Store(error) => error.into(),
            FetchError::Lost { hash, .. } => Self {
                lost_blobs: vec![hash],
                ..Self::retryable(error)
            },
            FetchError::Busy { .. } => Self::retryable(error),
        }
    }
}

impl From<DeviceError> for TaskFailure {
    fn from(error: DeviceError) -> Self {
        Self::retryable(error)
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use retouch_proto::{ContentHash, files::is_full};

    use super::*;

    #[test]
    fn a_disk_without_room_is_nobodys_failed_attempt() {
        for errno in [nix::libc::ENOSPC, nix::libc::EDQUOT] {
            let source = io::Error::from_raw_os_error(errno);
            assert!(is_full(&source), "{source}");
            let failure = TaskFailure::from(FetchError::Store(BlobStoreError::DiskFull {
                folder: "/data/blobs".into(),
                size: 1234,
                source,
            }));
            let reason = &failure.reason;
            assert!(failure.disk_full && failure.retryable, "{failure:?}");
            assert!(
                reason.starts_with("cannot write 1234 bytes to /data/blobs: ")
                    && reason.ends_with("; free some space there"),
                "{reason}"
            );
        }
        let broken = io::Error::from_raw_os_error(nix::libc::EIO);
        assert!(!is_full(&broken));
        let failure = TaskFailure::from(BlobStoreError::Io {
            path: "/data/blobs/1".into(),
            source: broken,
        });
        assert!(!failure.disk_full && failure.retryable);
    }

    #[test]
    fn a_limit_that_is_reached_is_waited_for_unless_it_is_too_low() {
        let full = |size| {
            let error = BlobStoreError::Full {
                folder: "/data/blobs".into(),
                held: 900,
                size,
                limit: 1000,
            };
            TaskFailure::from(error).disk_full
        };
        assert_eq!([full(200), full(1001)], [true, false]);
    }

    #[test]
    fn a_lost_blob_is_named() {
        let hash = ContentHash([7; 32]);
        let lost = FetchError::Lost {
            hash,
            attempts: Vec::new(),
        };
        assert_eq!(TaskFailure::from(lost).lost_blobs, [hash]);
    }
}
