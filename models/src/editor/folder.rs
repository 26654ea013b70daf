//! Editors as diffusers' pipeline folders.

use std::path::Path;

use burn::module::Module;
use burn::tensor::{DType, Device};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Editor, Encoders, ImageSize, LatentFormat, Parts};
use crate::autoencoder_kl::AutoencoderKlConfig;
use crate::flux::FluxTransformer;
use crate::scheduler::FlowMatchScheduler;
use crate::weights::{LoadError, read_config, require_file, write_config};

const INDEX_FILE: &str = "model_index.json";
const PIPELINE_CLASS: &str = "FluxKontextPipeline";

#[derive(Deserialize)]
struct ModelIndex {
    #[serde(rename = "_class_name")]
    class_name: String,
}

impl Editor {
    /// The editor of a diffusers pipeline folder, frozen, in f32.
    ///
    /// # Errors
    /// If a part can't be loaded, the parts do not fit each other, or the pipeline is another one.
    pub fn load(folder: &Path, device: &Device, parts: Parts) -> Result<Self, LoadError> {
        Self::load_as(folder, device, parts, DType::F32)
    }

    /// As [`Editor::load`], with the weights of the transformer and of the text encoders in the given float type.
    ///
    /// # Errors
    /// As [`Editor::load`].
    pub fn load_as(
        folder: &Path,
        device: &Device,
        parts: Parts,
        dtype: DType,
    ) -> Result<Self, LoadError> {
        check_class(&require_file(folder, INDEX_FILE, "a base editor")?)?;
        let vae = AutoencoderKlConfig::load(&folder.join("vae"))?;
        let transformer = FluxTransformer::load_as(&folder.join("transformer"), device, dtype)?;
        let encoders = match parts {
            // No gradient ever reaches them: they stay off the autodiff device.
            Parts::All => {
                let device = device.clone().without_autodiff();
                Some(Encoders::load(folder, &device, dtype)?)
            }
            Parts::Transformer => None,
        };
        let format = LatentFormat::of(&vae);
        check_widths(folder, &transformer, encoders.as_ref(), format)?;
        Ok(Self {
            transformer: transformer.no_grad(),
            scheduler: FlowMatchScheduler::load(&folder.join("scheduler"))?,
            encoders,
            format,
            device: device.clone(),
        })
    }

    /// Saves the editor as a diffusers pipeline folder.
    ///
    /// # Errors
    /// If the folder can't be written, or the encoders were not loaded.
    pub fn save(&self, folder: &Path) -> Result<(), LoadError> {
        let encoders = self.encoders.as_ref().ok_or_else(|| {
            LoadError::format(folder, "an editor without its encoders can't be saved")
        })?;
        self.transformer.save(&folder.join("transformer"))?;
        self.scheduler.save(&folder.join("scheduler"))?;
        encoders.save(folder)?;
        write_config(&folder.join(INDEX_FILE), &model_index())
    }
}

fn check_class(path: &Path) -> Result<(), LoadError> {
    let ModelIndex { class_name } = read_config(path)?;
    if class_name == PIPELINE_CLASS {
        return Ok(());
    }
    Err(LoadError::Unsupported {
        path: path.to_owned(),
        field: "_class_name",
        value: class_name,
        supported: PIPELINE_CLASS,
    })
}

/// What the parts hand to the transformer is as wide as it expects.
fn check_widths(
    folder: &Path,
    transformer: &FluxTransformer,
    encoders: Option<&Encoders>,
    format: LatentFormat,
) -> Result<(), LoadError> {
    let config = transformer.config();
    let [_, token] = format.shape(ImageSize::square(format.unit()));
    let text = encoders.map(|encoders| encoders.text_encoder_2.config().d_model);
    let pooled = encoders.map(|encoders| encoders.text_encoder.config().hidden_size);
    let widths = [
        (
            "in_channels",
            config.in_channels,
            Some(token),
            "four times vae/config.json's latent_channels",
        ),
        (
            "out_channels",
            config.out_features(),
            Some(token),
            "as many as in_channels",
        ),
        (
            "joint_attention_dim",
            config.joint_attention_dim,
            text,
            "text_encoder_2/config.json's d_model",
        ),
        (
            "pooled_projection_dim",
            config.pooled_projection_dim,
            pooled,
            "text_encoder/config.json's hidden_size",
        ),
    ];
    let wrong = |(_, found, expected, _): &(_, usize, Option<usize>, _)| {
        expected.is_some_and(|expected| expected != *found)
    };
    match widths.into_iter().find(wrong) {
        None => Ok(()),
        Some((field, found, _, supported)) => Err(LoadError::Unsupported {
            path: folder.join("transformer").join("config.json"),
            field,
            value: found.to_string(),
            supported,
        }),
    }
}

fn model_index() -> Value {
    json!({
        "_class_name": PIPELINE_CLASS,
        "feature_extractor": [null, null],
        "image_encoder": [null, null],
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "text_encoder_2": ["transformers", "T5EncoderModel"],
        "tokenizer": ["transformers", "PreTrainedTokenizerFast"],
        "tokenizer_2": ["transformers", "PreTrainedTokenizerFast"],
        "transformer": ["diffusers", "FluxTransformer2DModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    })
}
