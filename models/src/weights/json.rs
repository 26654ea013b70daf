//! The JSON files of model folders.

use std::path::Path;

use serde::de::{DeserializeOwned, Error};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

use super::LoadError;
use super::foreign::failed_download;
use super::quantised::{REMEDY, scheme_of};

/// Reads a text file; a byte order mark, which some editors put at its beginning, is no part of the text.
pub(crate) fn read_text(path: &Path) -> Result<String, LoadError> {
    let text = std::fs::read_to_string(path).map_err(|source| LoadError::io(path, source))?;
    if let Some(reason) = failed_download(text.as_bytes()) {
        return Err(LoadError::format(path, reason));
    }
    Ok(without_byte_order_mark(&text).to_owned())
}

/// The text behind a byte order mark, if it begins with one.
pub(crate) fn without_byte_order_mark(text: &str) -> &str {
    text.strip_prefix('\u{feff}').unwrap_or(text)
}

/// Reads a JSON configuration such as `config.json`.
///
/// # Errors
/// If the file can't be read, is not JSON, or lacks a field: the error names the file and the place.
pub fn read_config<C: DeserializeOwned>(path: &Path) -> Result<C, LoadError> {
    let text = read_text(path)?;
    serde_json::from_str(&text).map_err(|source| match source.is_data() {
        true => LoadError::format(path, source),
        false => LoadError::format(path, format!("no sound JSON: {source}")),
    })
}

/// Reads the configuration of a model of class `class`, as diffusers (`_class_name`) or transformers
/// (`architectures`) name it. A file that names no class is taken for the right one's.
///
/// # Errors
/// As [`read_config`], or if the file is another class's, or of quantised weights.
pub(super) fn read_class<C: DeserializeOwned>(
    path: &Path,
    class: &'static str,
) -> Result<C, LoadError> {
    let value: Value = read_config(path)?;
    let (field, found) = class_of(&value);
    if let Some(found) = found.filter(|found| *found != class) {
        return Err(LoadError::unsupported(path, field, found, class));
    }
    if let Some(scheme) = scheme_of(&value) {
        let reason = format!("the weights are quantised ({scheme}): {REMEDY}");
        return Err(LoadError::format(path, reason));
    }
    C::deserialize(value).map_err(|source| LoadError::format(path, source))
}

/// The class that a configuration names, and the field that does.
pub(crate) fn class_of(config: &Value) -> (&'static str, Option<&str>) {
    if let Some(name) = config.get("_class_name").and_then(Value::as_str) {
        return ("_class_name", Some(name));
    }
    let first = config.get("architectures").and_then(|list| list.get(0));
    ("architectures", first.and_then(Value::as_str))
}

/// Writes a JSON configuration, indented as the reference libraries do.
///
/// # Errors
/// If the file can't be written.
pub fn write_config<C: Serialize>(path: &Path, config: &C) -> Result<(), LoadError> {
    let mut text =
        serde_json::to_string_pretty(config).map_err(|source| LoadError::format(path, source))?;
    text.push('\n');
    std::fs::write(path, text).map_err(|source| LoadError::io(path, source))
}

/// A configuration with fields that files spell in two ways.
pub(crate) trait Spellings: DeserializeOwned {
    /// The name of each such field here, and the other that files may have.
    const SPELLINGS: &'static [[&'static str; 2]];
}

/// A configuration read in either spelling. A file may have both, as what newer versions of transformers save does;
/// serde's aliases would take the second for a duplicate.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spelled<T>(pub(crate) T);

impl<'de, T: Spellings> Deserialize<'de> for Spelled<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut fields = Map::deserialize(deserializer)?;
        for [name, other] in T::SPELLINGS {
            let Some(value) = fields.remove(*other) else {
                continue;
            };
            // Which of two values the reference would take depends on its version: neither is guessed.
            match fields.get(*name) {
                Some(found) if *found != value => {
                    return Err(D::Error::custom(format!(
                        "{name} = {found} and {other} = {value} are two spellings of one field, expected equal values"
                    )));
                }
                _ => fields.insert((*name).to_owned(), value),
            };
        }
        T::deserialize(Value::Object(fields))
            .map(Self)
            .map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[derive(Debug, PartialEq, Deserialize)]
    struct Size {
        width: usize,
    }

    impl Spellings for Size {
        const SPELLINGS: &'static [[&'static str; 2]] = &[["width", "columns"]];
    }

    fn read(value: Value) -> Result<usize, String> {
        let read = serde_json::from_value::<Spelled<Size>>(value);
        read.map(|size| size.0.width)
            .map_err(|error| error.to_string())
    }

    #[test]
    fn either_spelling_is_read_and_both_if_they_agree() {
        assert_eq!(read(json!({"width": 3})), Ok(3));
        assert_eq!(read(json!({"columns": 3})), Ok(3));
        assert_eq!(read(json!({"columns": 3, "width": 3})), Ok(3));
        assert_eq!(
            read(json!({"columns": 4, "width": 3})).unwrap_err(),
            "width = 3 and columns = 4 are two spellings of one field, expected equal values"
        );
        assert!(read(json!({})).unwrap_err().contains("`width`"));
    }

    #[test]
    fn a_byte_order_mark_is_skipped() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.json");
        std::fs::write(&path, "\u{feff}{\"width\": 3}").unwrap();
        assert_eq!(read_config::<Size>(&path).unwrap(), Size { width: 3 });
        // Only one, and only at the beginning.
        std::fs::write(&path, "\u{feff}\u{feff}{\"width\": 3}").unwrap();
        assert!(read_config::<Size>(&path).is_err());
    }
}
