//! Where a command writes its result, judged before the work whose result it is.

use std::{
    ffi::OsStr,
    fs::{self, OpenOptions},
    path::Path,
};

use retouch_proto::files::beside;

use crate::exit::UsageError;

/// Checks that a file can be written at `path`.
pub(crate) fn check_file(path: &Path) -> Result<(), UsageError> {
    if path.is_dir() || path.file_name().is_none() || ends_in_slash(path) {
        return Err(refusal(path, "is a folder, expected the name of a file"));
    }
    let folder = match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    };
    if !folder.is_dir() {
        return Err(refusal(
            path,
            format_args!("the folder {} is not there", folder.display()),
        ));
    }
    try_in(folder, path)
}

/// Checks that a folder can be written at `path`: it, or the nearest one above it that is there, takes files.
pub(crate) fn check_folder(path: &Path) -> Result<(), UsageError> {
    let above = path
        .ancestors()
        .find(|folder| folder.symlink_metadata().is_ok());
    let above = above.unwrap_or(Path::new("."));
    if !above.is_dir() {
        let reason = format_args!("{} is a file, expected a folder", above.display());
        return Err(refusal(path, reason));
    }
    try_in(above, path)
}

/// As [`check_folder`], for a folder that must not be there yet, so that nothing is overwritten.
pub(crate) fn check_new_folder(path: &Path) -> Result<(), UsageError> {
    let is_empty =
        |path: &Path| fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_none());
    if path.symlink_metadata().is_ok() && !is_empty(path) {
        return Err(refusal(path, "is there already, expected a new folder"));
    }
    check_folder(path)
}

/// Makes a file in `folder` and removes it: permissions alone do not say that a file system takes files.
fn try_in(folder: &Path, path: &Path) -> Result<(), UsageError> {
    let trial = beside(
        &folder.join(".retouch"),
        &format!("trial{}", std::process::id()),
    );
    let tried = OpenOptions::new().write(true).create_new(true).open(&trial);
    tried
        .and_then(|_| fs::remove_file(&trial))
        .map_err(|error| {
            refusal(
                path,
                format_args!("{} takes no files: {error}", folder.display()),
            )
        })
}

fn ends_in_slash(path: &Path) -> bool {
    path.as_os_str()
        .as_encoded_bytes()
        .ends_with(OsStr::new("/").as_encoded_bytes())
}

fn refusal(path: &Path, reason: impl std::fmt::Display) -> UsageError {
    UsageError(format!("can't write {}: {reason}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_need_a_name_in_a_folder_that_is_there() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        check_file(&path("new.png")).unwrap();
        let refused = |name: &str| check_file(&path(name)).unwrap_err().to_string();
        assert!(refused("").ends_with("is a folder, expected the name of a file"));
        assert!(refused("new.png/").ends_with("is a folder, expected the name of a file"));
        assert!(refused("none/new.png").ends_with("none is not there"));
        fs::write(path("file"), "").unwrap();
        check_file(&path("file")).unwrap();
        assert!(refused("file/new.png").contains("file is not there"));
        // Nothing is left behind.
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn folders_may_be_new_or_there_but_no_files() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::write(path("file"), "").unwrap();
        check_folder(&path("a/b")).unwrap();
        check_folder(folder.path()).unwrap();
        for name in ["file", "file/inner"] {
            let error = check_folder(&path(name)).unwrap_err().to_string();
            assert!(
                error.ends_with("file is a file, expected a folder"),
                "{error}"
            );
        }
        check_new_folder(&path("a")).unwrap();
        let error = check_new_folder(folder.path()).unwrap_err().to_string();
        assert!(
            error.ends_with("is there already, expected a new folder"),
            "{error}"
        );
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn places_that_take_no_files_are_named() {
        let error = check_file(Path::new("/proc/new.png"))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("can't write /proc/new.png: /proc takes no files: "),
            "{error}"
        );
        assert!(check_folder(Path::new("/proc/new/folder")).is_err());
    }
}
