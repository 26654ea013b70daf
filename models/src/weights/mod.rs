//! Named tensors on disk, and how modules take theirs from them.
//!
//! A published checkpoint is a folder with `config.json` and one `*.safetensors` file, or several
//! with an index. Modules name their fields as the reference does, so a parameter's path in the
//! module is nearly its key in the file; a [`Names`] table per component tells the few
//! differences. Loading reports every name that does not fit at once.

mod element;
mod error;
mod file;
mod fold;
mod folder;
mod load;
mod names;
mod part;
mod pretrained;
mod save;
mod table;
#[cfg(test)]
mod tests;

pub use error::{LoadError, Misfit, Misshaped};
pub use file::{DIFFUSERS_FILE, TRANSFORMERS_FILE, Weights};
pub(crate) use folder::{require_file, seems};
pub use names::Names;
pub use pretrained::{Pretrained, PretrainedConfig};
pub use save::{TensorMap, tensors_of, to_safetensors, write_safetensors};
pub use table::Table;

use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// Reads a JSON configuration such as `config.json`.
///
/// # Errors
/// If the file can't be read, is not JSON, or lacks a field: the error names the file and the place.
pub fn read_config<C: DeserializeOwned>(path: &Path) -> Result<C, LoadError> {
    let text = std::fs::read_to_string(path).map_err(|source| LoadError::io(path, source))?;
    serde_json::from_str(&text).map_err(|source| match source.is_data() {
        true => LoadError::format(path, source),
        false => LoadError::format(path, format!("no sound JSON: {source}")),
    })
}

/// Reads the configuration of a model of class `class`, as diffusers (`_class_name`) or transformers
/// (`architectures`) name it. A file that names no class is taken for the right one's.
///
/// # Errors
/// As [`read_config`], or if the file is another class's.
fn read_class<C: DeserializeOwned>(path: &Path, class: &'static str) -> Result<C, LoadError> {
    let value: Value = read_config(path)?;
    let (field, found) = class_of(&value);
    match found {
        Some(found) if found != class => Err(LoadError::Unsupported {
            path: path.to_owned(),
            field,
            value: found.to_owned(),
            supported: class,
        }),
        _ => C::deserialize(value).map_err(|source| LoadError::format(path, source)),
    }
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
