//! Files that only their owner may read.

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt, MetadataExt},
    path::Path,
};

use retouch_proto::files::{SECRET, write_whole};

use crate::error::CredentialsError;

/// Nothing that is read here is longer.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// Everybody who is not of the owner's group.
const OTHERS: u32 = 0o007;

/// Makes a folder that only its owner may enter.
pub(crate) fn make_folder(path: &Path) -> Result<(), CredentialsError> {
    let made = fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path);
    made.map_err(|source| CredentialsError::io(path, source))
}

/// Writes the file whole or not at all, for its owner alone.
pub(crate) fn write(path: &Path, text: &str) -> Result<(), CredentialsError> {
    write_whole(path, text, SECRET).map_err(|source| CredentialsError::io(path, source))
}

/// Reads a file that need not be secret.
pub(crate) fn read(path: &Path) -> Result<String, CredentialsError> {
    read_if(path, |_| Ok(()))
}

/// Reads a file that strangers must not be able to read.
pub(crate) fn read_secret(path: &Path) -> Result<String, CredentialsError> {
    read_if(path, |metadata| {
        let mode = metadata.mode() & 0o777;
        if mode & OTHERS == 0 {
            return Ok(());
        }
        Err(CredentialsError::Exposed {
            path: path.to_owned(),
            mode,
        })
    })
}

fn read_if(
    path: &Path,
    check: impl FnOnce(&fs::Metadata) -> Result<(), CredentialsError>,
) -> Result<String, CredentialsError> {
    let metadata = fs::metadata(path).map_err(|source| CredentialsError::io(path, source))?;
    check(&metadata)?;
    if metadata.len() > FILE_BYTES_MAX {
        let source = io::Error::other(format!("it is longer than {FILE_BYTES_MAX} bytes"));
        return Err(CredentialsError::io(path, source));
    }
    fs::read_to_string(path).map_err(|source| CredentialsError::io(path, source))
}
