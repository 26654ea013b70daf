//! Source images from the dataset folder.

use std::{
    io,
    path::{Path, PathBuf},
};

use image::RgbImage;
use retouch_dataset::{ImagePathError, image_file};
use retouch_models::{
    editor::{ImageSize, SizeRule, Sources},
    images::{self, ImageFileError},
};
use retouch_proto::config::{ModelConfig, Sizing};
use thiserror::Error;

/// A source image that can't be used.
#[derive(Debug, Error)]
pub enum SourceError {
    /// There is nothing to edit.
    #[error("no source image is named")]
    None,
    /// The path leads out of the dataset, or to no file.
    #[error("image {path:?}: {source}")]
    Path {
        /// The path in the dataset's row.
        path: String,
        /// What is wrong with it.
        source: ImagePathError,
    },
    /// The file is not an image that is read.
    #[error("image {}: {source}", path.display())]
    Image {
        /// The file.
        path: PathBuf,
        /// Why.
        source: ImageFileError,
    },
}

impl SourceError {
    /// Whether another attempt could go better: the disk may be busy, but a broken
    /// file stays broken.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Path { source, .. } => source.is_retryable(),
            Self::Image {
                source: ImageFileError::Io(source),
                ..
            } => source.kind() != io::ErrorKind::NotFound,
            Self::Image { .. } | Self::None => false,
        }
    }
}

/// How a run file has images sized.
pub fn size_rule(model: &ModelConfig) -> SizeRule {
    let size = ImageSize {
        height: model.height as usize,
        width: model.width as usize,
    };
    match model.sizing {
        Sizing::Fixed => SizeRule::Fixed(size),
        Sizing::Aspect => SizeRule::Area(size.height * size.width),
        Sizing::Preferred => SizeRule::Preferred,
    }
}

/// Loads the images at `paths` in the dataset folder, sized by the rule.
///
/// # Errors
/// If a path leads out of the folder, or a file is missing or broken.
pub fn load(folder: &Path, paths: &[String], rule: SizeRule) -> Result<Sources, SourceError> {
    let images = paths.iter().map(|path| open(folder, path));
    let images: Vec<RgbImage> = images.collect::<Result<_, _>>()?;
    match &images[..] {
        [] => Err(SourceError::None),
        images => Ok(Sources::sized(images, rule)),
    }
}

fn open(folder: &Path, path: &str) -> Result<RgbImage, SourceError> {
    let file = image_file(folder, path).map_err(|source| SourceError::Path {
        path: path.to_owned(),
        source,
    })?;
    images::open(&file).map_err(|source| SourceError::Image { path: file, source })
}

#[cfg(test)]
mod tests {
    use image::Rgb;

    use super::*;

    fn size(height: usize, width: usize) -> SizeRule {
        SizeRule::Fixed(ImageSize { height, width })
    }

    /// One image of the folder.
    fn load(folder: &Path, path: &str, rule: SizeRule) -> Result<RgbImage, SourceError> {
        let sources = super::load(folder, &[path.to_owned()], rule)?;
        Ok(sources.last().clone())
    }

    fn dataset() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("images")).unwrap();
        let image = RgbImage::from_fn(30, 20, |x, _| Rgb([if x < 15 { 200 } else { 50 }, 0, 9]));
        image.save(folder.path().join("images/0.png")).unwrap();
        folder
    }

    #[test]
    fn middle_is_cut_out_and_resized() {
        let folder = dataset();
        let same = load(folder.path(), "images/0.png", size(20, 30)).unwrap();
        assert_eq!(
            (same.dimensions(), same.get_pixel(14, 3).0),
            ((30, 20), [200, 0, 9])
        );
        let square = load(folder.path(), "images/0.png", size(20, 20)).unwrap();
        assert_eq!(
            (square.get_pixel(9, 0).0[0], square.get_pixel(10, 0).0[0]),
            (200, 50)
        );
        let small = load(folder.path(), "images/0.png", size(8, 8)).unwrap();
        assert_eq!(small.dimensions(), (8, 8));
        assert!(small.get_pixel(0, 0).0[0] > 180 && small.get_pixel(7, 7).0[0] < 70);
    }

    #[test]
    fn a_rule_may_keep_the_aspect() {
        let folder = dataset();
        let rule = size_rule(&ModelConfig {
            sizing: Sizing::Aspect,
            height: 64,
            width: 96,
            ..ModelConfig::default()
        });
        let kept = load(folder.path(), "images/0.png", rule).unwrap();
        assert_eq!(kept.dimensions(), (96, 64));
    }

    #[test]
    fn without_a_path_there_is_nothing_to_edit() {
        let none = super::load(dataset().path(), &[], size(64, 64)).unwrap_err();
        assert!(!none.is_retryable());
    }

    #[test]
    fn paths_stay_in_the_dataset_and_links_are_followed() {
        let folder = dataset();
        let snapshot = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(folder.path().join("images"), snapshot.path().join("images"))
            .unwrap();
        load(snapshot.path(), "images/0.png", size(8, 8)).unwrap();
        for path in ["../0.png", "/etc/passwd", "", "a/../../0.png"] {
            let error = load(snapshot.path(), path, size(8, 8)).unwrap_err();
            assert!(error.to_string().contains("not a path inside"), "{error}");
            assert!(!error.is_retryable());
        }
    }

    #[test]
    fn missing_and_broken_files_are_named() {
        let folder = dataset();
        std::fs::write(folder.path().join("broken.png"), b"\x89PNG\r\n\x1a\nrest").unwrap();
        for path in ["missing.png", "broken.png"] {
            let error = load(folder.path(), path, size(8, 8)).unwrap_err();
            assert!(
                error.to_string().contains(path) && !error.is_retryable(),
                "{error}"
            );
        }
    }
}
