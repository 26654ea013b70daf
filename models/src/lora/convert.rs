//! Adapter files written in other formats, their factors as they are.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::Hash;
use std::path::Path;

use retouch_settings::choice;
use serde_json::{Value, json};

use super::file::StoredLayer;
use super::format::Spelling;
use super::interchange::{self, DIFFUSERS_PREFIX, PEFT_PREFIX};
use super::peft_config::peft_json;
use super::{AdapterFile, LoraConfig, Projection};
use crate::weights::{LoadError, TensorMap, put_folder};

choice! {
    /// The formats that adapters are written in.
    AdapterFormat {
        /// A folder with `adapter_config.json` and `adapter_model.safetensors`.
        Peft = "peft",
        /// A folder with `pytorch_lora_weights.safetensors`.
        Diffusers = "diffusers",
    }
}

impl AdapterFile {
    /// The same with the names of a model's layers, all of which it fits.
    ///
    /// # Errors
    /// If it does not fit.
    pub fn named(self, projections: &[Projection]) -> Result<Self, LoadError> {
        let fitted = self.fit(projections)?.into_iter();
        let layers = fitted.map(|(slot, layer)| layer.renamed(&projections[slot].name));
        let layers = layers.collect();
        Ok(self.with_layers(layers))
    }

    /// Whether some of its names have underscores for dots, so that only [`AdapterFile::named`] tells which layers are
    /// meant.
    pub fn needs_model(&self) -> bool {
        let mut layers = self.layers().iter();
        layers.any(|layer| layer.spelling == Spelling::Underscored)
    }

    /// Writes the adapter as a folder that is new or empty, whole or not at all. The factors keep their values and
    /// element types; each layer keeps its rank and alpha.
    ///
    /// # Errors
    /// If the folder can't be written.
    ///
    /// # Panics
    /// If [`AdapterFile::needs_model`].
    pub fn save(&self, folder: &Path, format: AdapterFormat) -> Result<(), LoadError> {
        assert!(!self.needs_model(), "layers have their model's names");
        let config = self.config_json();
        put_folder(folder, |folder| match format {
            AdapterFormat::Peft => {
                interchange::write_peft(folder, &self.tensors(PEFT_PREFIX), &config)
            }
            AdapterFormat::Diffusers => {
                interchange::write_diffusers(folder, &self.tensors(DIFFUSERS_PREFIX), &config)
            }
        })
    }

    fn tensors(&self, prefix: &str) -> TensorMap {
        let factors = self.layers().iter().flat_map(|layer| {
            let [a, b] = self.factors(layer, None);
            [("lora_A", a), ("lora_B", b)]
                .map(|(factor, data)| (format!("{prefix}.{}.{factor}.weight", layer.name), data))
        });
        factors.collect()
    }

    /// peft's configuration: the rank and the alpha of most layers, and those of the others by their names.
    fn config_json(&self) -> Value {
        let layers = self.layers();
        let rank = most(layers.iter().map(|layer| layer.rank));
        let alpha = f64::from_bits(most(layers.iter().map(|layer| layer.alpha.to_bits())));
        let others = |own: &dyn Fn(&StoredLayer) -> Option<Value>| -> BTreeMap<String, Value> {
            let others = layers
                .iter()
                .filter_map(|layer| Some((layer.name.clone(), own(layer)?)));
            others.collect()
        };
        let names: BTreeSet<String> = layers.iter().map(|layer| layer.name.clone()).collect();
        let mut config = peft_json(&LoraConfig {
            rank,
            alpha,
            target_modules: names.into_iter().collect(),
        });
        config["use_rslora"] = json!(self.is_rank_stabilized());
        config["rank_pattern"] = json!(others(
            &|layer| (layer.rank != rank).then(|| json!(layer.rank))
        ));
        config["alpha_pattern"] = json!(others(
            &|layer| (layer.alpha != alpha).then(|| json!(layer.alpha))
        ));
        config
    }
}

/// The value that occurs most often; of several, the smallest.
fn most<T: Copy + Ord + Hash + Default>(values: impl Iterator<Item = T>) -> T {
    let mut counts: HashMap<T, usize> = HashMap::new();
    values.for_each(|value| *counts.entry(value).or_default() += 1);
    let most = counts
        .into_iter()
        .max_by_key(|(value, count)| (*count, std::cmp::Reverse(*value)));
    most.map_or(T::default(), |(value, _)| value)
}
