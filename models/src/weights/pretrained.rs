use std::path::Path;

use burn::module::Module;
use burn::tensor::{DType, Device};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::json::read_class;
use super::save::save_folder;
use super::{LoadError, Names, Table, Weights, require_file};
use crate::init::Init;

/// The published configuration of a model: what its folder's `config.json` says.
pub trait PretrainedConfig: Serialize + DeserializeOwned {
    /// What diffusers or transformers calls the model.
    const CLASS: &'static str;

    /// Whether the model can be built; `path` names the file in the error.
    ///
    /// # Errors
    /// If it asks for something that this model does not have.
    fn check(&self, _path: &Path) -> Result<(), LoadError> {
        Ok(())
    }

    /// The configuration of a model's folder.
    ///
    /// # Errors
    /// If it can't be read, is another class's, or asks for something that this model does not have.
    fn load(folder: &Path) -> Result<Self, LoadError> {
        let what = format!("a model of class {}", Self::CLASS);
        let path = require_file(folder, "config.json", &what)?;
        let config: Self = read_class(&path, Self::CLASS)?;
        config.check(&path)?;
        Ok(config)
    }
}

/// A model that diffusers or transformers saves as a folder of its own: `config.json`, and weights in one
/// file or in shards with an index.
pub trait Pretrained: Module {
    /// What it is built from.
    type Config: PretrainedConfig;

    /// The name of its weight file: [`DIFFUSERS_FILE`](super::DIFFUSERS_FILE) or
    /// [`TRANSFORMERS_FILE`](super::TRANSFORMERS_FILE).
    const FILE: &'static str;

    /// A new model; its parameters are trainable.
    ///
    /// # Panics
    /// If the configuration is one that [`PretrainedConfig::check`] refuses.
    fn init(config: &Self::Config, init: &Init) -> Self;

    /// The configuration that it was built from.
    fn config(&self) -> &Self::Config;

    /// The names of its tensors in published files.
    fn names(config: &Self::Config) -> Names;

    /// The names of its tensors in this file, where files of several layouts are about.
    fn names_in(config: &Self::Config, _weights: &Weights) -> Names {
        Self::names(config)
    }

    /// The model of a folder, in f32.
    ///
    /// # Errors
    /// If its files can't be read or do not fit each other.
    fn load(folder: &Path, device: &Device) -> Result<Self, LoadError> {
        Self::load_as(folder, device, DType::F32)
    }

    /// As [`Pretrained::load`], with weights of the given float type.
    ///
    /// # Errors
    /// As [`Pretrained::load`].
    fn load_as(folder: &Path, device: &Device, dtype: DType) -> Result<Self, LoadError> {
        let config = Self::Config::load(folder)?;
        Self::from_weights(&config, &Weights::from_folder(folder)?, device, dtype)
    }

    /// A model of the given weights.
    ///
    /// # Errors
    /// If they do not fit the configuration.
    fn from_weights(
        config: &Self::Config,
        weights: &Weights,
        device: &Device,
        dtype: DType,
    ) -> Result<Self, LoadError> {
        let names = Self::names_in(config, weights);
        weights.load_as(Self::init(config, &Init::new(0, device)), &names, dtype)
    }

    /// Names and shapes of the tensors of a published model of this configuration.
    fn table(config: &Self::Config) -> Table {
        Table::of(&Self::init(config, &Init::unused()), &Self::names(config))
    }

    /// The same under the names that this file uses.
    fn table_in(config: &Self::Config, weights: &Weights) -> Table {
        let names = Self::names_in(config, weights);
        Table::of(&Self::init(config, &Init::unused()), &names)
    }

    /// Saves the model as a folder.
    ///
    /// # Errors
    /// If the folder can't be written.
    fn save(&self, folder: &Path) -> Result<(), LoadError> {
        let config = self.config();
        save_folder(folder, config, self, &Self::names(config), Self::FILE)
    }
}
