//! Small files that are written whole or not at all, and which failures will not mend themselves.

use std::{
    ffi::OsString,
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

/// For a file that everybody may read.
pub const PUBLIC: u32 = 0o644;
/// For a file that only its owner may read.
pub const SECRET: u32 = 0o600;

/// Writes a file whole: whoever opens it, even after a power cut, finds the old content or the new one. `mode` is for a
/// file that is not there yet and for one that is replaced.
///
/// # Errors
/// If it can't be written, on a full disk for example; the old content is then as it was.
pub fn write_whole(path: &Path, content: impl AsRef<[u8]>, mode: u32) -> io::Result<()> {
    let temporary = temporary(path);
    let written = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(mode)
        .open(&temporary)
        .and_then(|mut file| file.write_all(content.as_ref()));
    if written.is_err() {
        // Of no use to anybody, and on a full disk in the way.
        let _ = fs::remove_file(&temporary);
        return written;
    }
    put_in_place(&temporary, path)
}

/// Gives a finished temporary file its name, durably; if that fails it is removed.
///
/// # Errors
/// If it can't be made durable or renamed.
pub fn put_in_place(temporary: &Path, path: &Path) -> io::Result<()> {
    let put = File::open(temporary)
        .and_then(|file| file.sync_all())
        .and_then(|()| fs::rename(temporary, path));
    if put.is_err() {
        // The first error is the one to tell.
        let _ = fs::remove_file(temporary);
        return put;
    }
    // Without this the rename itself may be forgotten.
    File::open(folder_of(path))?.sync_all()
}

/// Makes a folder that appears whole or not at all: `fill` fills `unfinished`, which then gets the folder's name. What a
/// killed process left at `unfinished` goes first. `wrap` makes an error of what the file system says.
///
/// # Errors
/// If `fill` fails or the folder can't be made; nothing of it is left then.
pub fn whole_folder<T, E>(
    folder: &Path,
    unfinished: &Path,
    wrap: impl Fn(io::Error) -> E,
    fill: impl FnOnce(&Path) -> Result<T, E>,
) -> Result<T, E> {
    let emptied = match fs::remove_dir_all(unfinished) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => fs::create_dir_all(unfinished),
    };
    let made = emptied.map_err(&wrap).and_then(|()| {
        let filled = fill(unfinished)?;
        fs::rename(unfinished, folder).map_err(&wrap)?;
        Ok(filled)
    });
    if made.is_err() {
        // The first error is the one to tell.
        let _ = fs::remove_dir_all(unfinished);
    }
    made
}

/// `NAME.SUFFIX` beside a file `NAME`.
pub fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(".");
    name.push(suffix);
    name.into()
}

/// Of this process alone: another may write the same file at the same time.
fn temporary(path: &Path) -> PathBuf {
    beside(path, &format!("tmp{}", std::process::id()))
}

fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// Whether there is no room left: on the disk, or within the user's quota.
pub fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}

/// Whether trying again a moment later would fail the same way: the path itself is wrong. A full disk may have room by
/// then.
pub fn is_lasting(error: &io::Error) -> bool {
    use io::ErrorKind::{
        AlreadyExists, InvalidFilename, InvalidInput, IsADirectory, NotADirectory, NotFound,
        PermissionDenied, ReadOnlyFilesystem, Unsupported,
    };
    matches!(
        error.kind(),
        AlreadyExists
            | InvalidFilename
            | InvalidInput
            | IsADirectory
            | NotADirectory
            | NotFound
            | PermissionDenied
            | ReadOnlyFilesystem
            | Unsupported
    )
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn a_file_is_replaced_whole_with_its_mode() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.toml");
        for (text, mode) in [("old", PUBLIC), ("new", SECRET)] {
            write_whole(&path, text, mode).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
            assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, mode);
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_can_not_be_written_leaves_the_old_content_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.toml");
        write_whole(&path, "old", PUBLIC).unwrap();
        // What fails like a full disk: the temporary file is opened, and takes nothing.
        std::os::unix::fs::symlink("/dev/full", temporary(&path)).unwrap();
        let error = write_whole(&path, "new", PUBLIC).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        assert!(!is_lasting(&error));
        assert_eq!(fs::read_to_string(&path).unwrap(), "old");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_path_that_is_wrong_stays_wrong() {
        let folder = tempfile::tempdir().unwrap();
        for path in [
            folder.path().join("missing/config.toml"),
            "/proc/config.toml".into(),
        ] {
            let error = write_whole(&path, "new", PUBLIC).unwrap_err();
            assert!(is_lasting(&error), "{}: {error}", path.display());
        }
    }

    #[test]
    fn a_bare_name_is_in_the_present_folder() {
        assert_eq!(folder_of(Path::new("report.json")), Path::new("."));
        assert_eq!(folder_of(Path::new("run/report.json")), Path::new("run"));
    }
}
