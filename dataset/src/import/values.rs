//! What the cells of a shard hold.

use std::{fs, path::Path};

use parquet::record::{Field, Row};

use crate::image_file;

/// An image in a cell.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Picture {
    /// The file itself.
    Bytes(Vec<u8>),
    /// A file beside the shard.
    Path(String),
}

impl Picture {
    /// The file's bytes; paths begin at the shard's folder.
    pub(super) fn bytes(self, folder: &Path) -> Result<Vec<u8>, String> {
        match self {
            Self::Bytes(bytes) => Ok(bytes),
            Self::Path(path) => image_file(folder, &path)
                .map_err(|error| error.to_string())
                .and_then(|file| fs::read(file).map_err(|error| error.to_string()))
                .map_err(|error| {
                    format!("the shard has no bytes, only the path {path:?}: {error}")
                }),
        }
    }
}

/// A text; none is empty.
pub(super) fn text(value: Field) -> Result<String, String> {
    match value {
        Field::Null => Ok(String::new()),
        Field::Str(text) => Ok(text),
        other => Err(format!("expected a text, found {}", kind(&other))),
    }
}

/// The images of a cell: one, a list, or none. An image is what `datasets.Image` writes, a struct of bytes and path, or
/// either alone.
pub(super) fn pictures(value: Field) -> Result<Vec<Picture>, String> {
    match value {
        Field::Null => Ok(Vec::new()),
        Field::ListInternal(list) => {
            let each = list.elements().iter().cloned().map(pictures);
            Ok(each
                .collect::<Result<Vec<_>, _>>()?
                .into_iter()
                .flatten()
                .collect())
        }
        Field::Bytes(bytes) => Ok(vec![Picture::Bytes(bytes.data().to_vec())]),
        Field::Str(path) => Ok(vec![Picture::Path(path)]),
        Field::Group(group) => of_group(group).map(|picture| picture.into_iter().collect()),
        other => Err(format!("expected an image, found {}", kind(&other))),
    }
}

fn of_group(group: Row) -> Result<Option<Picture>, String> {
    let mut path = None;
    for (name, value) in group.into_columns() {
        match (name.as_str(), value) {
            ("bytes", Field::Bytes(bytes)) => {
                return Ok(Some(Picture::Bytes(bytes.data().to_vec())));
            }
            ("path", Field::Str(text)) => path = Some(text),
            ("bytes" | "path", Field::Null) => {}
            (name, value) => {
                return Err(format!(
                    "expected an image of bytes and path, found {name} ({})",
                    kind(&value)
                ));
            }
        }
    }
    Ok(path.map(Picture::Path))
}

fn kind(value: &Field) -> &'static str {
    match value {
        Field::Null => "nothing",
        Field::Str(_) => "a text",
        Field::Bytes(_) => "bytes",
        Field::Group(_) => "a struct",
        Field::ListInternal(_) => "a list",
        Field::MapInternal(_) => "a map",
        _ => "a number",
    }
}

/// The ending that an image file of these bytes has.
pub(super) fn ending(bytes: &[u8]) -> &'static str {
    match bytes {
        [0x89, b'P', b'N', b'G', ..] => "png",
        [0xff, 0xd8, ..] => "jpg",
        [b'R', b'I', b'F', b'F', ..] => "webp",
        // Images are read by their content.
        _ => "image",
    }
}
