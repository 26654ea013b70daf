//! Named tensors on disk, and how modules take theirs from them.
//!
//! A published checkpoint is a folder with `config.json` and one `*.safetensors` file, or several
//! with an index. Modules name their fields as the reference does, so a parameter's path in the
//! module is nearly its key in the file; a [`Names`] table per component tells the few
//! differences. Loading reports every name that does not fit at once.

mod error;
mod file;
mod load;
mod names;
mod save;
#[cfg(test)]
mod tests;

pub use error::{LoadError, Misshaped};
pub use file::{DIFFUSERS_FILE, TRANSFORMERS_FILE, Weights};
pub use names::Names;
pub use save::{TensorMap, save_folder, tensors_of, to_safetensors, write_safetensors};

use std::path::Path;

use serde::{Serialize, de::DeserializeOwned};

/// Reads a JSON configuration such as `config.json`.
///
/// # Errors
/// If the file can't be read, is not JSON, or lacks a field: the error names the file and the place.
pub fn read_config<C: DeserializeOwned>(path: &Path) -> Result<C, LoadError> {
    let text = std::fs::read_to_string(path).map_err(|source| LoadError::io(path, source))?;
    serde_json::from_str(&text).map_err(|source| LoadError::format(path, source))
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
