use std::path::{Path, PathBuf};

use serde_json::Value;

use super::{LoadError, class_of, read_config};

/// The file that makes `folder` a `what`.
///
/// # Errors
/// If it is not there; the error says what the folder seems to be instead.
pub(crate) fn require_file(folder: &Path, file: &str, what: &str) -> Result<PathBuf, LoadError> {
    let path = folder.join(file);
    if path.is_file() {
        return Ok(path);
    }
    if !folder.is_dir() {
        return Err(LoadError::format(
            folder,
            format!("there is no such folder, expected {what}"),
        ));
    }
    let seems = seems(folder).map_or(String::new(), |seems| format!("; the folder is {seems}"));
    Err(LoadError::format(
        folder,
        format!("not {what}: {file} is missing{seems}"),
    ))
}

/// What the folder is, by the files that tell.
pub(crate) fn seems(folder: &Path) -> Option<String> {
    if folder.join("adapter_config.json").is_file() {
        return Some("an adapter".to_owned());
    }
    let named = |file: &str, field: &str| {
        let config: Value = read_config(&folder.join(file)).ok()?;
        let class = config.get(field).and_then(Value::as_str);
        class.or(class_of(&config).1).map(str::to_owned)
    };
    if let Some(class) = named("model_index.json", "_class_name") {
        return Some(format!("a pipeline of class {class}"));
    }
    named("config.json", "_class_name").map(|class| format!("a model of class {class}"))
}
