use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::Value;

use super::Component;
use super::classes::{self, JUDGES, is_known};
use crate::editor::{Assumed, ImageSize, LOADERS, Outline, supported_classes};
use crate::hub;
use crate::judge::ChatTemplate;
use crate::lora::LoraConfig;
use crate::weights::{LoadError, class_of, read_config, seems};

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
    /// What may be meant, and should be looked at.
    pub warnings: Vec<String>,
}

impl Inspection {
    /// Everything that keeps the folder from being used, a sentence each.
    pub fn all_problems(&self) -> impl Iterator<Item = &str> {
        let parts = self.components.iter().flat_map(|part| &part.problems);
        self.problems.iter().chain(parts).map(String::as_str)
    }
}

/// Looks at a model folder, or that of a model's id (see [`hub::locate`]): headers and configurations only.
///
/// # Errors
/// If it is neither a diffusers pipeline nor a transformers model. What is wrong with its parts is in the result.
pub fn inspect(folder: &Path) -> Result<Inspection, LoadError> {
    let folder = &hub::locate(folder)?;
    if folder.join(PIPELINE_FILE).is_file() {
        return pipeline(folder);
    }
    if folder.join(MODEL_FILE).is_file() {
        return model(folder);
    }
    let reason = match folder.is_dir() {
        true => {
            let seems = seems(folder).map_or(String::new(), |seems| format!("; it is {seems}"));
            format!(
                "no model folder: it has neither {PIPELINE_FILE}, as a diffusers pipeline has, nor {MODEL_FILE}, as a transformers model has{seems}"
            )
        }
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
    let (parts, unread): (Vec<_>, Vec<_>) = parts(class, &index)
        .into_iter()
        .partition(|(name, part)| is_read(class, name) || classes::class(part).is_some());
    let components = parts
        .into_iter()
        .map(|(name, class)| Component::check(name, class, &folder.join(name)));
    let unread = unread
        .into_iter()
        .map(|(name, class)| format!("{name}: a part of class {class} is not read"));
    let mut inspection = Inspection {
        folder: folder.to_owned(),
        kind: FolderKind::Editor,
        class: class.to_owned(),
        components: components.collect(),
        problems: unsupported(folder, class).into_iter().collect(),
        warnings: unread.collect(),
    };
    // Sound parts may still not fit each other.
    if inspection.all_problems().next().is_none() {
        let misfit = outline(class, folder).err();
        inspection
            .problems
            .extend(misfit.map(|error| error.to_string()));
    }
    Ok(inspection)
}

/// The outline of any edit.
fn outline(class: &str, folder: &Path) -> Result<Outline, LoadError> {
    let lora = LoraConfig {
        rank: 1,
        alpha: 1.0,
        target_modules: Vec::new(),
    };
    let assumed = Assumed {
        size: ImageSize::square(512),
        sources: 1,
        prompt_tokens: 128,
        lora: &lora,
    };
    Outline::read(class, folder, &assumed)
}

/// Whether the pipeline's loader reads the part.
fn is_read(class: &str, part: &str) -> bool {
    let known = LOADERS.iter().find(|loader| loader.class.name == class);
    known.is_some_and(|loader| loader.class.parts.iter().any(|read| read.name == part))
}

/// Names and classes of a pipeline's parts: those that its index lists, and those that it should.
fn parts<'a>(class: &str, index: &'a BTreeMap<String, Value>) -> BTreeMap<&'a str, &'a str> {
    let known = LOADERS.iter().find(|loader| loader.class.name == class);
    let needed = known.map_or(&[][..], |loader| loader.class.parts).iter();
    let mut parts: BTreeMap<&str, &str> = needed.map(|part| (part.name, part.class)).collect();
    // A part is a pair of library and class; those of two nulls are not there.
    let listed = index.iter().filter_map(|(name, value)| {
        let class = value.as_array()?.get(1)?.as_str()?;
        Some((name.as_str(), class))
    });
    parts.extend(listed);
    parts
}

fn model(folder: &Path) -> Result<Inspection, LoadError> {
    let config: Value = read_config(&folder.join(MODEL_FILE))?;
    let class = class_of(&config).1.unwrap_or("");
    if !JUDGES.contains(&class) {
        return Err(LoadError::format(folder, no_judge(class)));
    }
    let components = vec![
        Component::check("model", class, folder),
        Component::check("processor", "JudgeProcessor", folder),
    ];
    Ok(Inspection {
        folder: folder.to_owned(),
        kind: FolderKind::Judge,
        class: class.to_owned(),
        components,
        problems: Vec::new(),
        warnings: chat_template(folder).into_iter().collect(),
    })
}

/// What a model is that is no judge.
fn no_judge(class: &str) -> String {
    if is_known(class) {
        return format!(
            "a model of class {class} is one part of an editor; check the folder around it, which has {PIPELINE_FILE}"
        );
    }
    let judges = JUDGES.join(", ");
    format!("a model of class {class:?} is not supported as a judge; supported: {judges}")
}

/// Where a judge's own chat template has other markup than the judge's default template.
fn chat_template(folder: &Path) -> Option<String> {
    match ChatTemplate::find(folder) {
        Ok(chat) => chat.and_then(|chat| chat.difference()),
        Err(error) => Some(error.to_string()),
    }
}

fn unsupported(folder: &Path, class: &str) -> Option<String> {
    let known = LOADERS.iter().any(|loader| loader.class.name == class);
    (!known).then(|| {
        format!(
            "{}: the class {class:?} is not supported; supported: {}",
            folder.display(),
            supported_classes()
        )
    })
}
