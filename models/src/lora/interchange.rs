//! Adapters as peft's folders and as diffusers' file.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use burn::tensor::Device;
use serde_json::Value;

use super::factors::named_factors;
use super::peft_config::{PeftConfig, peft_json};
use super::{AdapterFile, LoraAdapter, LoraConfig, Projection};
use crate::weights::{LoadError, TensorMap, Weights, read_config, write_config, write_safetensors};

const CONFIG_FILE: &str = "adapter_config.json";
const PEFT_FILE: &str = "adapter_model.safetensors";
const DIFFUSERS_FILE: &str = "pytorch_lora_weights.safetensors";
pub(super) const PEFT_PREFIX: &str = "base_model.model";
pub(super) const DIFFUSERS_PREFIX: &str = "transformer";
const DIFFUSERS_METADATA: &str = "lora_adapter_metadata";

/// Saves an adapter as peft does: `adapter_config.json` and `adapter_model.safetensors`.
///
/// # Errors
/// If the folder can't be written.
pub fn save_peft(
    folder: &Path,
    adapter: &LoraAdapter,
    config: &LoraConfig,
    projections: &[Projection],
) -> Result<(), LoadError> {
    fs::create_dir_all(folder).map_err(|source| LoadError::io(folder, source))?;
    let tensors = named_factors(adapter, projections, PEFT_PREFIX);
    write_peft(folder, &tensors, &peft_json(config))
}

/// Names the base model in a peft folder's configuration, as peft does.
///
/// # Errors
/// If the configuration can't be read or written.
pub fn name_base(folder: &Path, base: &str) -> Result<(), LoadError> {
    let path = folder.join(CONFIG_FILE);
    let mut config: serde_json::Map<String, Value> = read_config(&path)?;
    config.insert("base_model_name_or_path".to_owned(), base.into());
    write_config(&path, &Value::Object(config))
}

/// The files of a peft folder that is there.
pub(super) fn write_peft(
    folder: &Path,
    tensors: &TensorMap,
    config: &Value,
) -> Result<(), LoadError> {
    write_config(&folder.join(CONFIG_FILE), config)?;
    let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
    write_safetensors(&folder.join(PEFT_FILE), tensors, &metadata)
}

/// Saves an adapter as the one file that diffusers' `load_lora_weights` takes:
/// `pytorch_lora_weights.safetensors`.
///
/// Its header carries alpha, since diffusers otherwise takes alpha to be the rank.
///
/// # Errors
/// If the folder can't be written.
pub fn save_diffusers(
    folder: &Path,
    adapter: &LoraAdapter,
    config: &LoraConfig,
    projections: &[Projection],
) -> Result<(), LoadError> {
    fs::create_dir_all(folder).map_err(|source| LoadError::io(folder, source))?;
    let tensors = named_factors(adapter, projections, DIFFUSERS_PREFIX);
    write_diffusers(folder, &tensors, &peft_json(config))
}

/// The file of diffusers in a folder that is there.
pub(super) fn write_diffusers(
    folder: &Path,
    tensors: &TensorMap,
    config: &Value,
) -> Result<(), LoadError> {
    let metadata = BTreeMap::from([
        ("format".to_owned(), "pt".to_owned()),
        (DIFFUSERS_METADATA.to_owned(), header(config)),
    ]);
    write_safetensors(&folder.join(DIFFUSERS_FILE), tensors, &metadata)
}

/// Loads an adapter from what it is published as, see [`AdapterFile::open`].
///
/// # Errors
/// As [`AdapterFile::open`] and [`AdapterFile::load`].
pub fn load_adapter(
    path: &Path,
    projections: &[Projection],
    device: &Device,
) -> Result<LoraAdapter, LoadError> {
    AdapterFile::open(path)?.load(projections, device)
}

/// The tensors of an adapter, and what is said of them beside their names.
pub(super) struct Found {
    pub(super) weights: Weights,
    pub(super) config: Option<PeftConfig>,
}

/// The file that `path` means, and its configuration if it has one.
pub(super) fn find(path: &Path) -> Result<Found, LoadError> {
    if path.is_file() {
        return with_header(path);
    }
    let config_path = path.join(CONFIG_FILE);
    if config_path.is_file() {
        let config: PeftConfig = read_config(&config_path)?;
        config.check(&config_path)?;
        return Ok(Found {
            weights: Weights::from_file(&path.join(PEFT_FILE))?,
            config: Some(config),
        });
    }
    let file = path.join(DIFFUSERS_FILE);
    if file.is_file() {
        return with_header(&file);
    }
    let reason = match path.is_dir() {
        true => format!(
            "no adapter: neither {CONFIG_FILE} nor {DIFFUSERS_FILE} is there; a file of another name is named itself"
        ),
        false => "there is no such file or folder, expected an adapter".to_owned(),
    };
    Err(LoadError::format(path, reason))
}

/// A file that may have its configuration in its header, as newer versions of diffusers write it.
fn with_header(path: &Path) -> Result<Found, LoadError> {
    let weights = Weights::from_file(path)?;
    let metadata = weights.metadata();
    let header = metadata.and_then(|metadata| metadata.get(DIFFUSERS_METADATA));
    let config = header.map(|header| parse(header)).transpose();
    let config = config.map_err(|source| LoadError::format(path, source))?;
    if let Some(config) = &config {
        config.check(path)?;
    }
    Ok(Found { weights, config })
}

/// peft's configuration as diffusers has it in a file's header, every key prefixed.
fn header(config: &Value) -> String {
    let fields = config.as_object().into_iter().flatten();
    let fields = fields.map(|(key, value)| (format!("{DIFFUSERS_PREFIX}.{key}"), value.clone()));
    Value::Object(fields.collect()).to_string()
}

fn parse(header: &str) -> serde_json::Result<PeftConfig> {
    let header: BTreeMap<String, Value> = serde_json::from_str(header)?;
    let prefix = format!("{DIFFUSERS_PREFIX}.");
    // A transformer's own `save_lora_adapter` has no prefix, neither here nor in the tensors' names.
    let is_prefixed = header.keys().any(|key| key.starts_with(&prefix));
    let fields = header
        .into_iter()
        .filter_map(|(key, value)| match is_prefixed {
            true => Some((key.strip_prefix(&prefix)?.to_owned(), value)),
            false => Some((key, value)),
        });
    serde_json::from_value(Value::Object(fields.collect()))
}
