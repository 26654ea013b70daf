//! The file behind a row's path.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use retouch_proto::paths;

/// Why a row's path leads to no image file.
#[derive(Debug, thiserror::Error)]
pub enum ImagePathError {
    /// The path itself leads elsewhere, or nowhere.
    #[error("not a path inside the dataset; expected one relative to its folder, without \"..\"")]
    Outside,
    /// The path is a link that can't be followed.
    #[error("a link to {}: {source}", to.display())]
    Link {
        /// What the link says.
        to: PathBuf,
        /// Why it can't be followed.
        source: io::Error,
    },
    /// There is a directory, or something else that is not a file.
    #[error("{0}, expected a file")]
    NotAFile(&'static str),
    /// There is nothing, or nothing that can be looked at.
    #[error("{0}")]
    Io(io::Error),
}

impl ImagePathError {
    /// Whether it may be there at another attempt: a network disk may be away, but a wrong path stays wrong.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Link { source, .. } | Self::Io(source) => !matches!(
                source.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            ),
            Self::Outside | Self::NotAFile(_) => false,
        }
    }
}

/// The file that a row names by `path`, an existing one.
///
/// The text of the path may not leave the folder: rows come from strangers, and a row must not read other files of
/// whoever trains on it. Links are followed wherever they point: they were made by whoever put the folder there. A
/// Hugging Face snapshot consists of links to `../../blobs`, and `images/` may be a link to a larger disk.
///
/// # Errors
/// If the path is empty, absolute or has `..`, or no file is there.
pub fn image_file(folder: &Path, path: &str) -> Result<PathBuf, ImagePathError> {
    if !paths::is_inner(path) {
        return Err(ImagePathError::Outside);
    }
    let file = folder.join(path);
    let metadata = fs::metadata(&file).map_err(|source| match fs::read_link(&file) {
        // Else the message would deny a file that `ls` shows.
        Ok(to) => ImagePathError::Link { to, source },
        Err(_) => ImagePathError::Io(source),
    })?;
    if metadata.is_dir() {
        return Err(ImagePathError::NotAFile("a directory"));
    }
    // A pipe or a terminal would be waited for without end.
    if !metadata.is_file() {
        return Err(ImagePathError::NotAFile("a device, pipe or socket"));
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// `data/` with an image, a file beside it, and all kinds of links.
    fn dataset() -> (tempfile::TempDir, PathBuf) {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("data");
        fs::create_dir_all(folder.join("images")).unwrap();
        fs::write(folder.join("images/0.png"), "x").unwrap();
        fs::write(root.path().join("blob"), "x").unwrap();
        symlink("../../blob", folder.join("images/linked.png")).unwrap();
        symlink(root.path(), folder.join("elsewhere")).unwrap();
        symlink("../gone", folder.join("images/dangling.png")).unwrap();
        symlink("loop.png", folder.join("images/loop.png")).unwrap();
        symlink("/dev/null", folder.join("images/device.png")).unwrap();
        (root, folder)
    }

    #[test]
    fn links_are_followed_wherever_they_point() {
        let (_root, folder) = dataset();
        for path in [
            "images/0.png",
            "./images/0.png",
            "images/linked.png",
            "elsewhere/blob",
        ] {
            assert_eq!(image_file(&folder, path).unwrap(), folder.join(path));
        }
    }

    #[test]
    fn the_text_of_a_path_stays_in_the_folder() {
        let (_root, folder) = dataset();
        let inside = "images/../images/0.png";
        for path in ["", "../blob", "/etc/passwd", inside, "images/0.png\0"] {
            let error = image_file(&folder, path).unwrap_err();
            assert!(matches!(error, ImagePathError::Outside), "{path}: {error}");
            assert!(!error.is_retryable());
        }
    }

    #[test]
    fn what_is_no_file_is_named() {
        let (_root, folder) = dataset();
        for (path, expected) in [
            ("images/1.png", "No such file"),
            ("images/0.png/1.png", "Not a directory"),
            ("images/dangling.png", "a link to ../gone: No such file"),
            ("images/loop.png", "a link to loop.png: Too many levels"),
            ("images", "a directory, expected a file"),
            ("images/device.png", "a device, pipe or socket"),
        ] {
            let error = image_file(&folder, path).unwrap_err();
            assert!(error.to_string().starts_with(expected), "{path}: {error}");
        }
        let missing = image_file(&folder, "images/1.png").unwrap_err();
        let away = ImagePathError::Io(io::ErrorKind::StaleNetworkFileHandle.into());
        assert_eq!(
            [missing, away].map(|error| error.is_retryable()),
            [false, true]
        );
    }
}
