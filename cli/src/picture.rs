//! Pictures that commands write.

use std::{io::Cursor, path::Path};

use anyhow::Context;
use image::{ImageFormat, ImageResult, RgbImage};
use retouch_proto::files::{PUBLIC, write_whole};

use crate::{destination, exit::UsageError};

/// Checks that a picture can be written at `path`, in the format that its name asks for.
pub(crate) fn check(path: &Path) -> Result<(), UsageError> {
    let is_written = |format: &ImageFormat| format.writing_enabled();
    if ImageFormat::from_path(path)
        .ok()
        .filter(is_written)
        .is_none()
    {
        let shown = path.display();
        return Err(UsageError(format!(
            "can't write {shown}: expected a name that ends in one of {}",
            endings()
        )));
    }
    destination::check_file(path)
}

/// The endings of pictures that can be written.
fn endings() -> String {
    let formats = ImageFormat::all().filter(ImageFormat::writing_enabled);
    let endings = formats.flat_map(|format| format.extensions_str());
    let endings: Vec<String> = endings.map(|ending| format!(".{ending}")).collect();
    endings.join(", ")
}

/// Writes a picture whole or not at all, in the format that its name asks for.
pub(crate) fn save(image: &RgbImage, path: &Path) -> anyhow::Result<()> {
    let context = || format!("can't write {}", path.display());
    let format = ImageFormat::from_path(path).with_context(context)?;
    let bytes = encoded(image, format).with_context(context)?;
    write_whole(path, bytes, PUBLIC).with_context(context)
}

/// A picture as the bytes of a PNG.
pub(crate) fn png(image: &RgbImage) -> ImageResult<Vec<u8>> {
    encoded(image, ImageFormat::Png)
}

fn encoded(image: &RgbImage, format: ImageFormat) -> ImageResult<Vec<u8>> {
    let mut bytes = Cursor::new(Vec::new());
    image.write_to(&mut bytes, format)?;
    Ok(bytes.into_inner())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_ending_that_is_told_is_written() {
        let folder = tempfile::tempdir().unwrap();
        let picture = RgbImage::new(3, 2);
        for ending in endings().split(", ") {
            let path = folder.path().join(format!("x{ending}"));
            check(&path).unwrap();
            save(&picture, &path).unwrap();
            let read = image::ImageReader::open(&path).unwrap().decode().unwrap();
            assert_eq!((read.width(), read.height()), (3, 2));
        }
    }

    #[test]
    fn a_format_that_is_not_written_is_refused_with_those_that_are() {
        for name in ["out", "out.tiff", "out.txt", ".png"] {
            let error = check(Path::new(name)).unwrap_err().to_string();
            let expected = format!(
                "can't write {name}: expected a name that ends in one of .jpg, .jpeg, .png, .webp"
            );
            assert!(error.starts_with(&expected), "{error}");
        }
    }
}
