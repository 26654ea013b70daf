//! Paths that come from other processes: they must not lead out of the folder that they are for.
//!
//! A dataset's rows are held to [`is_inner`] alone, since its folder's owner may link to other places; what a peer
//! names in the run folder is held to [`inside`].

use std::{
    io,
    path::{Component, Path, PathBuf},
};

/// A path that can't be used.
#[derive(Debug, thiserror::Error)]
pub enum PathError {
    /// It leads out of its folder, by itself or through a symbolic link.
    #[error("path {path:?} leads out of the folder {}", folder.display())]
    Outside {
        /// The path.
        path: String,
        /// The folder that it should stay in.
        folder: PathBuf,
    },
    /// It can't be followed.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Whether the path by itself stays where it begins: relative, not empty, and without `..`.
pub fn is_inner(path: &str) -> bool {
    let plain = |part: Component<'_>| matches!(part, Component::Normal(_) | Component::CurDir);
    !path.is_empty() && !path.contains('\0') && Path::new(path).components().all(plain)
}

/// The file behind the path, symbolic links followed, if it is in the folder.
///
/// # Errors
/// If it leads out of the folder, or there is no such file.
pub fn inside(folder: &Path, path: &str) -> Result<PathBuf, PathError> {
    let outside = || PathError::Outside {
        path: path.to_owned(),
        folder: folder.to_owned(),
    };
    if !is_inner(path) {
        return Err(outside());
    }
    let file = folder.join(path);
    let (real_folder, real_file) = (real(folder)?, real(&file)?);
    if real_file.starts_with(real_folder) {
        Ok(file)
    } else {
        Err(outside())
    }
}

fn real(path: &Path) -> Result<PathBuf, PathError> {
    path.canonicalize().map_err(|source| PathError::Io {
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_stay_in_their_folder() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("images");
        std::fs::create_dir_all(folder.join("a")).unwrap();
        for file in ["secret", "images/0.png", "images/a/1.png"] {
            std::fs::write(root.path().join(file), "x").unwrap();
        }
        std::os::unix::fs::symlink("../secret", folder.join("link.png")).unwrap();
        std::os::unix::fs::symlink("0.png", folder.join("inner.png")).unwrap();
        std::os::unix::fs::symlink("..", folder.join("up")).unwrap();
        for path in ["0.png", "a/1.png", "./a/1.png", "inner.png"] {
            assert_eq!(inside(&folder, path).unwrap(), folder.join(path));
        }
        for path in [
            "../secret",
            "/etc/passwd",
            "",
            "a/../../secret",
            "link.png",
            "up/secret",
            "a\0b",
        ] {
            let error = inside(&folder, path).unwrap_err();
            assert!(
                matches!(error, PathError::Outside { .. }),
                "{path}: {error}"
            );
        }
        let missing = inside(&folder, "2.png").unwrap_err();
        assert!(matches!(missing, PathError::Io { .. }), "{missing}");
    }
}
