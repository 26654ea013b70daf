use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use super::LoadError;

/// Writes a folder whole or not at all: `write` fills one of another name beside it, which then gets the name. A folder
/// of that name may be there if it is empty.
///
/// # Errors
/// If `write` fails or the folder can't be put in place; nothing is left behind then.
pub(crate) fn put_folder<T>(
    folder: &Path,
    write: impl FnOnce(&Path) -> Result<T, LoadError>,
) -> Result<T, LoadError> {
    let partial = partial(folder);
    let io = |source| LoadError::io(&partial, source);
    let written = fs::create_dir_all(&partial)
        .map_err(io)
        .and_then(|()| write(&partial))
        .and_then(|value| {
            fs::rename(&partial, folder).map_err(|source| LoadError::io(folder, source))?;
            Ok(value)
        });
    if written.is_err() {
        // The first error is the one to tell.
        let _ = fs::remove_dir_all(&partial);
    }
    written
}

/// Of this process alone, on the same file system.
fn partial(folder: &Path) -> PathBuf {
    let folder = folder.components().as_path();
    let mut name = OsString::from(folder);
    name.push(format!(".partial{}", std::process::id()));
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_there_whole_or_not_at_all() {
        let outer = tempfile::tempdir().unwrap();
        let folder = outer.path().join("a/b/");
        let write = |folder: &Path| {
            fs::write(folder.join("one"), "1").map_err(|source| LoadError::io(folder, source))
        };
        put_folder(&folder, |folder| write(folder)).unwrap();
        assert_eq!(fs::read(folder.join("one")).unwrap(), b"1");
        // One that is there with files in it stays.
        assert!(put_folder(&folder, |folder| write(folder)).is_err());
        let failing = |folder: &Path| {
            write(folder)?;
            Err::<(), _>(LoadError::format(folder, "no"))
        };
        assert!(put_folder(&outer.path().join("a/c"), failing).is_err());
        assert_eq!(fs::read_dir(outer.path().join("a")).unwrap().count(), 1);
    }
}
