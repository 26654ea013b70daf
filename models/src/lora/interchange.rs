//! Adapters as peft's folders and as diffusers' file.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use burn::tensor::Device;
use serde_json::Value;

use super::factors::{load_factors, named_factors};
use super::peft_config::{PeftConfig, peft_json};
use super::{LoraAdapter, LoraConfig, Projection};
use crate::weights::{LoadError, Weights, read_config, write_config, write_safetensors};

const CONFIG_FILE: &str = "adapter_config.json";
const PEFT_FILE: &str = "adapter_model.safetensors";
const DIFFUSERS_FILE: &str = "pytorch_lora_weights.safetensors";
const PEFT_PREFIX: &str = "base_model.model";
const DIFFUSERS_PREFIX: &str = "transformer";
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
    write_config(&folder.join(CONFIG_FILE), &peft_json(config))?;
    let tensors = named_factors(adapter, projections, PEFT_PREFIX);
    let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
    write_safetensors(&folder.join(PEFT_FILE), &tensors, &metadata)
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
    let metadata = BTreeMap::from([
        ("format".to_owned(), "pt".to_owned()),
        (DIFFUSERS_METADATA.to_owned(), header(config)),
    ]);
    let tensors = named_factors(adapter, projections, DIFFUSERS_PREFIX);
    write_safetensors(&folder.join(DIFFUSERS_FILE), &tensors, &metadata)
}

/// Loads an adapter from what it is published as: a peft folder, a folder with diffusers'
/// `pytorch_lora_weights.safetensors`, or such a file.
///
/// # Errors
/// As [`load_peft`], or if the path is none of these.
pub fn load_adapter(
    path: &Path,
    projections: &[Projection],
    device: &Device,
) -> Result<LoraAdapter, LoadError> {
    if path.is_file() {
        return load_diffusers(path, projections, device);
    }
    if path.join(CONFIG_FILE).is_file() {
        return load_peft(path, projections, device);
    }
    let file = path.join(DIFFUSERS_FILE);
    if file.is_file() {
        return load_diffusers(&file, projections, device);
    }
    let reason = match path.is_dir() {
        true => format!("no adapter: neither {CONFIG_FILE} nor {DIFFUSERS_FILE} is there"),
        false => "there is no such file or folder, expected an adapter".to_owned(),
    };
    Err(LoadError::format(path, reason))
}

/// Loads a peft folder as an adapter for a model with the given projections.
///
/// # Errors
/// If a file can't be read, the adapter is of a kind that is not plain LoRA, or its factors do
/// not fit the model: then all names that do not are in the error.
pub fn load_peft(
    folder: &Path,
    projections: &[Projection],
    device: &Device,
) -> Result<LoraAdapter, LoadError> {
    let path = folder.join(CONFIG_FILE);
    let config: PeftConfig = read_config(&path)?;
    config.check(&path)?;
    let weights = Weights::from_file(&folder.join(PEFT_FILE))?;
    load_factors(&weights, PEFT_PREFIX, &config, projections, device)
}

/// Loads a `pytorch_lora_weights.safetensors` file as diffusers does: without metadata, alpha is
/// the rank.
///
/// # Errors
/// As [`load_peft`].
pub fn load_diffusers(
    path: &Path,
    projections: &[Projection],
    device: &Device,
) -> Result<LoraAdapter, LoadError> {
    let weights = Weights::from_file(path)?;
    let metadata = weights.metadata();
    let config = match metadata.and_then(|metadata| metadata.get(DIFFUSERS_METADATA)) {
        Some(header) => parse(header).map_err(|source| LoadError::format(path, source))?,
        None => PeftConfig::alpha_is_rank(first_rank(&weights)),
    };
    config.check(path)?;
    load_factors(&weights, DIFFUSERS_PREFIX, &config, projections, device)
}

/// peft's configuration as diffusers has it in a file's header, every key prefixed.
fn header(config: &LoraConfig) -> String {
    let config = peft_json(config);
    let fields = config.as_object().into_iter().flatten();
    let fields = fields.map(|(key, value)| (format!("{DIFFUSERS_PREFIX}.{key}"), value.clone()));
    Value::Object(fields.collect()).to_string()
}

fn parse(header: &str) -> serde_json::Result<PeftConfig> {
    let header: BTreeMap<String, Value> = serde_json::from_str(header)?;
    let prefix = format!("{DIFFUSERS_PREFIX}.");
    let fields = header
        .into_iter()
        .filter_map(|(key, value)| Some((key.strip_prefix(&prefix)?.to_owned(), value)));
    serde_json::from_value(Value::Object(fields.collect()))
}

fn first_rank(weights: &Weights) -> usize {
    let mut names = weights.names();
    let first_a = names.find(|name| name.ends_with(".lora_A.weight"));
    let rank = first_a.and_then(|name| weights.shape(name)?.first().copied());
    rank.unwrap_or(1)
}
