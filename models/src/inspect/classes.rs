//! The classes that a published folder may name, each with the code that knows it.

use std::path::Path;

use crate::autoencoder_kl::{AutoencoderKl, AutoencoderKlConfig};
use crate::autoencoder_kl_qwen_image::{AutoencoderKlQwenImage, AutoencoderKlQwenImageConfig};
use crate::clip::{ClipText, ClipTextConfig};
use crate::flux::{FluxTransformer, FluxTransformerConfig};
use crate::image_processor::ImageProcessor;
use crate::judge::JudgeProcessor;
use crate::qwen_image::{QwenImageTransformer, QwenImageTransformerConfig};
use crate::qwen2_5_vl::{Qwen2_5Vl, Qwen2_5VlConfig};
use crate::scheduler::FlowMatchScheduler;
use crate::t5::{T5Config, T5Encoder};
use crate::tokenizer::Tokenizer;
use crate::weights::{LoadError, Pretrained, PretrainedConfig, Table, Weights};

/// The models that are judges.
pub(super) const JUDGES: [&str; 1] = [Qwen2_5VlConfig::CLASS];

/// What is known of a class.
#[derive(Clone, Copy)]
pub(super) enum Class {
    /// A model: the table of its folder's configuration, under the names that the weights use.
    Model(fn(&Path, Option<&Weights>) -> Result<Table, LoadError>),
    /// A part without weights: whether it can be loaded.
    Other(fn(&Path) -> Result<(), String>),
}

/// Whether `name` is a class of models.
pub(super) fn is_known(name: &str) -> bool {
    matches!(class(name), Some(Class::Model(_)))
}

/// What is known of the class called `name`.
pub(super) fn class(name: &str) -> Option<Class> {
    Some(match name {
        FluxTransformerConfig::CLASS => model::<FluxTransformer>(),
        QwenImageTransformerConfig::CLASS => model::<QwenImageTransformer>(),
        AutoencoderKlQwenImageConfig::CLASS => model::<AutoencoderKlQwenImage>(),
        AutoencoderKlConfig::CLASS => model::<AutoencoderKl>(),
        T5Config::CLASS => model::<T5Encoder>(),
        ClipTextConfig::CLASS => model::<ClipText>(),
        Qwen2_5VlConfig::CLASS => model::<Qwen2_5Vl>(),
        "FlowMatchEulerDiscreteScheduler" => {
            Class::Other(|folder| told(FlowMatchScheduler::load(folder)))
        }
        "JudgeProcessor" => Class::Other(|folder| {
            let config = Qwen2_5VlConfig::load(folder).map_err(|error| error.to_string())?;
            told(JudgeProcessor::load(folder, &config))
        }),
        // What transformers 4 and 5 call the same.
        "Qwen2_5_VLProcessor" | "Qwen2VLProcessor" => {
            Class::Other(|folder| told(ImageProcessor::load(folder)))
        }
        name if name.contains("Tokenizer") => Class::Other(|folder| told(Tokenizer::load(folder))),
        _ => return None,
    })
}

fn model<M: Pretrained>() -> Class {
    Class::Model(|folder, weights| {
        let config = M::Config::load(folder)?;
        Ok(match weights {
            Some(weights) => M::table_in(&config, weights),
            None => M::table(&config),
        })
    })
}

fn told<T, E: std::fmt::Display>(result: Result<T, E>) -> Result<(), String> {
    result.map(drop).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::editor::LOADERS;

    #[test]
    fn every_part_of_every_editor_is_known() {
        for pipeline in LOADERS.each_ref().map(|loader| loader.class) {
            assert!(!pipeline.parts.is_empty(), "{}", pipeline.name);
            for part in pipeline.parts {
                assert!(
                    class(part.class).is_some(),
                    "{}: {}",
                    pipeline.name,
                    part.class
                );
            }
        }
        assert!(class("UNet2DConditionModel").is_none());
    }
}
