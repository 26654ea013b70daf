//! Pictures that commands write.

use std::{io::Cursor, path::Path};

use anyhow::Context;
use image::{ImageFormat, RgbImage};
use retouch_proto::files::{PUBLIC, write_whole};

/// Writes a picture whole or not at all, in the format that its name asks for.
pub(crate) fn save(image: &RgbImage, path: &Path) -> anyhow::Result<()> {
    let context = || format!("can't write {}", path.display());
    let format = ImageFormat::from_path(path).with_context(context)?;
    let mut bytes = Cursor::new(Vec::new());
    image.write_to(&mut bytes, format).with_context(context)?;
    write_whole(path, bytes.into_inner(), PUBLIC).with_context(context)
}
