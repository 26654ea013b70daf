//! Source images from the dataset folder.

use std::{
    io,
    path::{Component, Path, PathBuf},
};

use image::{ImageReader, Limits, RgbImage};
use retouch_models::editor::{ImageSize, SizeRule, fit};
use retouch_proto::config::{ModelConfig, Sizing};
use thiserror::Error;

/// Longest side of an image file that is read.
const SIDE_MAX: u32 = 16_384;
/// Memory that decoding a file may take.
const DECODE_BYTES_MAX: u64 = 2 << 30;

/// A source image that can't be used. Trying again is of no use.
#[derive(Debug, Error)]
pub enum SourceError {
    /// The path leads out of the dataset.
    #[error("image path {path:?} leads out of the dataset folder {}", folder.display())]
    Outside {
        /// The path in the dataset's row.
        path: String,
        /// The dataset folder.
        folder: PathBuf,
    },
    /// The file can't be opened.
    #[error("image {}: {source}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is not an image that can be read.
    #[error("image {} is broken or of an unknown kind: {source}", path.display())]
    Decode {
        /// The file.
        path: PathBuf,
        /// Why.
        source: image::ImageError,
    },
}

impl SourceError {
    /// Whether another attempt could go better: the disk may be busy, but a broken
    /// file stays broken.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Open { source, .. } => source.kind() != io::ErrorKind::NotFound,
            Self::Outside { .. } | Self::Decode { .. } => false,
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

/// Loads the image at `path` in the dataset folder: the largest part in the middle
/// that has the proportions of the rule's size for it, resized to that size.
///
/// # Errors
///
/// If the path leads out of the folder, or the file is missing or broken.
pub fn load(folder: &Path, path: &str, rule: SizeRule) -> Result<RgbImage, SourceError> {
    let file = inside(folder, path)?;
    let mut reader = ImageReader::open(&file)
        .and_then(ImageReader::with_guessed_format)
        .map_err(|source| SourceError::Open {
            path: file.clone(),
            source,
        })?;
    let mut limits = Limits::default();
    limits.max_image_width = Some(SIDE_MAX);
    limits.max_image_height = Some(SIDE_MAX);
    limits.max_alloc = Some(DECODE_BYTES_MAX);
    reader.limits(limits);
    let image = reader
        .decode()
        .map_err(|source| SourceError::Decode { path: file, source })?;
    let image = image.to_rgb8();
    Ok(fit(&image, rule.size(ImageSize::of(&image))))
}

/// The file behind the path, symbolic links followed, if it is in the folder.
fn inside(folder: &Path, path: &str) -> Result<PathBuf, SourceError> {
    let outside = || SourceError::Outside {
        path: path.to_owned(),
        folder: folder.to_owned(),
    };
    let plain = |part: Component<'_>| matches!(part, Component::Normal(_) | Component::CurDir);
    if path.is_empty() || !Path::new(path).components().all(plain) {
        return Err(outside());
    }
    let file = folder.join(path);
    let real = |path: &Path| {
        let path = path.to_owned();
        path.canonicalize()
            .map_err(|source| SourceError::Open { path, source })
    };
    let (real_folder, real_file) = (real(folder)?, real(&file)?);
    if real_file.starts_with(real_folder) {
        Ok(file)
    } else {
        Err(outside())
    }
}

#[cfg(test)]
mod tests {
    use image::Rgb;

    use super::*;

    fn size(height: usize, width: usize) -> SizeRule {
        SizeRule::Fixed(ImageSize { height, width })
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
    fn paths_stay_in_the_dataset() {
        let folder = dataset();
        std::fs::write(folder.path().join("secret"), "x").unwrap();
        let images = folder.path().join("images");
        std::os::unix::fs::symlink("../secret", images.join("link.png")).unwrap();
        for path in ["../secret", "/etc/passwd", "", "a/../../secret", "link.png"] {
            let error = load(&images, path, size(8, 8)).unwrap_err();
            assert!(
                matches!(error, SourceError::Outside { .. }),
                "{path}: {error}"
            );
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
