use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::Value;

use super::Component;
use super::classes::{JUDGES, PIPELINES};
use crate::weights::{LoadError, class_of, read_config};

const PIPELINE_FILE: &str = "model_index.json";
const MODEL_FILE: &str = "config.json";

/// What a folder can be used as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FolderKind {
    /// A base editor, in diffusers' layout.
    Editor,
    /// A judge, in transformers' layout.
    Judge,
}

impl fmt::Display for FolderKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Editor => "a base editor",
            Self::Judge => "a judge",
        })
    }
}

/// What a model folder holds.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Inspection {
    /// The folder.
    pub folder: PathBuf,
    /// What it can be used as.
    pub kind: FolderKind,
    /// The pipeline's or the model's class.
    pub class: String,
    /// Its parts.
    pub components: Vec<Component>,
    /// What is wrong with the whole.
    pub problems: Vec<String>,
}

impl Inspection {
    /// Everything that keeps the folder from being used, a sentence each.
    pub fn all_problems(&self) -> impl Iterator<Item = &str> {
        let parts = self.components.iter().flat_map(|part| &part.problems);
        self.problems.iter().chain(parts).map(String::as_str)
    }
}

/// Looks at a model folder: headers and configurations only.
///
/// # Errors
/// If it is neither a diffusers pipeline nor a transformers model. What is wrong with its parts is in the result.
pub fn inspect(folder: &Path) -> Result<Inspection, LoadError> {
    if folder.join(PIPELINE_FILE).is_file() {
        return pipeline(folder);
    }
    if folder.join(MODEL_FILE).is_file() {
        return model(folder);
    }
    let reason = match folder.is_dir() {
        true => format!(
            "no model folder: it has neither {PIPELINE_FILE}, as a diffusers pipeline has, nor {MODEL_FILE}, as a transformers model has"
        ),
        false => "there is no such folder".to_owned(),
    };
    Err(LoadError::format(folder, reason))
}

fn pipeline(folder: &Path) -> Result<Inspection, LoadError> {
    let index: BTreeMap<String, Value> = read_config(&folder.join(PIPELINE_FILE))?;
    let class = index
        .get("_class_name")
        .and_then(Value::as_str)
        .unwrap_or("");
    // A part is a pair of library and class; those of two nulls are not there.
    let parts = index.iter().filter_map(|(name, value)| {
        let class = value.as_array()?.get(1)?.as_str()?;
        Some(Component::check(name, class, &folder.join(name)))
    });
    Ok(Inspection {
        folder: folder.to_owned(),
        kind: FolderKind::Editor,
        class: class.to_owned(),
        components: parts.collect(),
        problems: unsupported(folder, class, &PIPELINES).into_iter().collect(),
    })
}

fn model(folder: &Path) -> Result<Inspection, LoadError> {
    let config: Value = read_config(&folder.join(MODEL_FILE))?;
    let class = class_of(&config).1.unwrap_or("");
    let mut components = Vec::new();
    if JUDGES.contains(&class) {
        components.push(Component::check("model", class, folder));
        components.push(Component::check("processor", "JudgeProcessor", folder));
    }
    Ok(Inspection {
        folder: folder.to_owned(),
        kind: FolderKind::Judge,
        class: class.to_owned(),
        components,
        problems: unsupported(folder, class, &JUDGES).into_iter().collect(),
    })
}

fn unsupported(folder: &Path, class: &str, supported: &[&str]) -> Option<String> {
    let supported_list = supported.join(", ");
    (!supported.contains(&class)).then(|| {
        format!(
            "{}: the class {class:?} is not supported; supported: {supported_list}",
            folder.display()
        )
    })
}
