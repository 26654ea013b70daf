use std::path::Path;

use super::LatentFormat;
use super::base::Loader;
use super::base_model::Pipeline;
use super::folder::class_name;
use crate::dit::Transformer;
use crate::hub;
use crate::init::Init;
use crate::lora::{LoraConfig, Projection, check_targets};
use crate::weights::{LoadError, Pretrained, PretrainedConfig};

/// What the configurations of a pipeline folder say of its editor; weights are not looked at.
#[derive(Debug, Clone)]
pub struct Layout {
    /// `_class_name` of the diffusers pipeline.
    pub class: &'static str,
    /// Most source images.
    pub sources_max: usize,
    /// How images become latent tokens.
    pub latent_format: LatentFormat,
    /// The layers that an adapter may change.
    pub projections: Vec<Projection>,
}

impl Layout {
    /// The layout of a diffusers pipeline folder, or of such a model's id (see [`hub::locate`]).
    ///
    /// # Errors
    /// If a configuration can't be read, or the pipeline is none that is known.
    pub fn read(folder: &Path) -> Result<Self, LoadError> {
        let folder = &hub::locate(folder)?;
        (Loader::find(&class_name(folder)?, folder)?.layout)(folder)
    }

    pub(super) fn of<P: Pipeline>(folder: &Path) -> Result<Self, LoadError> {
        type Config<P> = <<P as Pipeline>::Transformer as Pretrained>::Config;
        let config = Config::<P>::load(&folder.join("transformer"))?;
        let transformer = P::Transformer::init(&config, &Init::unused());
        Ok(Self {
            class: P::CLASS.name,
            sources_max: P::CLASS.sources_max,
            latent_format: P::format(folder)?,
            projections: transformer.projections().to_vec(),
        })
    }

    /// Checks, before anything is loaded, that an adapter's targets are layers of the editor in `folder`.
    ///
    /// # Errors
    /// As [`Layout::read`], or if an entry of `target_modules` means no layer.
    pub fn check_targets(folder: &Path, lora: &LoraConfig) -> Result<(), LoadError> {
        let layout = Self::read(folder)?;
        check_targets(lora, &layout.projections).map_err(|error| LoadError::format(folder, error))
    }
}
