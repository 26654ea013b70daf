//! Qwen-Image-Edit-2509, as diffusers' `QwenImageEditPlusPipeline` has it: one to three source images, whose latent
//! tokens are appended to the noise tokens, and which the text encoder sees too, in a smaller size.

mod encoders;
mod outline;
mod template;
#[cfg(test)]
mod tests;

use std::path::Path;

use burn::tensor::{Device, Tensor};

pub use self::encoders::{QwenImageEditEncoders, TextPositions};
pub(super) use self::outline::outline;
use super::base_model::{BaseModel, Part, Pipeline, PipelineClass, TextWidths};
use super::folder::Width;
use super::size::area_size;
use super::{
    ConditionShape, EditError, ImageSize, LatentFormat, PromptBatch, PromptInput, PromptShape,
};
use crate::autoencoder_kl_qwen_image::AutoencoderKlQwenImageConfig;
use crate::qwen_image::{
    ImageShape, QwenImageCondition, QwenImageTransformer, QwenImageTransformerConfig,
};
use crate::weights::{LoadError, PretrainedConfig};

/// Pixels of a source image for each token of it that the text encoder makes.
const PIXELS_PER_TOKEN: usize = 28 * 28;
/// Tokens of an instruction of common length and of the markup around it.
const INSTRUCTION_TOKENS: usize = 64;

/// Qwen-Image-Edit-2509.
pub type QwenImageEdit = BaseModel<QwenImageEditPlusPipeline>;

/// What Qwen-Image-Edit-2509 does in its own way.
#[derive(Clone, Copy, Debug, Default)]
pub struct QwenImageEditPlusPipeline {
    /// The sizes of source images; no field of a pipeline folder.
    pub areas: Areas,
}

/// About how many pixels source images are brought to, their aspect kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Areas {
    /// For the text encoder.
    pub condition: usize,
    /// For the autoencoder, where sources have their preferred size.
    pub source: usize,
}

impl Default for Areas {
    fn default() -> Self {
        Self {
            condition: 384 * 384,
            source: 1024 * 1024,
        }
    }
}

impl Pipeline for QwenImageEditPlusPipeline {
    const CLASS: &'static PipelineClass = &PipelineClass {
        name: "QwenImageEditPlusPipeline",
        parts: &[
            Part::transformers("processor", "Qwen2_5_VLProcessor"),
            Part::scheduler(),
            Part::transformers("text_encoder", "Qwen2_5_VLForConditionalGeneration"),
            Part::transformers("tokenizer", "PreTrainedTokenizerFast"),
            Part::diffusers("transformer", "QwenImageTransformer2DModel"),
            Part::diffusers("vae", "AutoencoderKLQwenImage"),
        ],
        absent_parts: &[],
        sources_max: 3,
        prompt_sees_sources: true,
        trains_text_encoders: false,
    };
    type Transformer = QwenImageTransformer;
    type Encoders = QwenImageEditEncoders;

    fn format(folder: &Path) -> Result<LatentFormat, LoadError> {
        AutoencoderKlQwenImageConfig::load(&folder.join("vae")).map(|vae| format_of(&vae))
    }

    fn widths(
        transformer: &QwenImageTransformerConfig,
        format: LatentFormat,
        text: TextWidths,
    ) -> Vec<Width> {
        let channels = [transformer.in_channels, transformer.out_features()];
        let supported = [
            "four times vae/config.json's z_dim",
            "vae/config.json's z_dim, with a patch_size of 2",
        ];
        let [in_channels, out_channels] = Width::of_images(channels, format, supported);
        vec![
            in_channels,
            out_channels,
            Width::new(
                "joint_attention_dim",
                transformer.joint_attention_dim,
                text.tokens,
                "text_encoder/config.json's hidden_size",
            ),
        ]
    }

    fn prompt_shape(
        &self,
        transformer: &QwenImageTransformerConfig,
        shape: ConditionShape,
    ) -> PromptShape {
        PromptShape {
            tokens: shape.sources * self.areas.condition / PIXELS_PER_TOKEN + INSTRUCTION_TOKENS,
            width: transformer.joint_attention_dim,
            pooled: None,
        }
    }

    fn preferred_size(&self, own: ImageSize, _format: LatentFormat) -> ImageSize {
        area_size(own, self.areas.source)
    }

    /// Text of any length is encoded whole.
    fn encode_prompts(
        &self,
        encoders: &QwenImageEditEncoders,
        prompts: &[PromptInput<'_>],
        _max_sequence_length: usize,
        device: &Device,
    ) -> Result<PromptBatch, EditError> {
        let encode = |input| encoders.encode_prompt(input, self.areas.condition, device);
        let prompts: Vec<_> = prompts.iter().map(encode).collect::<Result<_, _>>()?;
        Ok(PromptBatch::stack(&prompts))
    }

    /// The model takes no guidance scale.
    fn condition(
        _transformer: &QwenImageTransformerConfig,
        prompts: PromptBatch,
        grids: &[[usize; 2]],
        _guidance_scale: f64,
        _device: &Device,
    ) -> QwenImageCondition {
        let shape = |[height, width]: [usize; 2]| ImageShape {
            frames: 1,
            height,
            width,
        };
        QwenImageCondition {
            encoder_hidden_states: prompts.tokens,
            text_lengths: prompts.lengths,
            img_shapes: grids.iter().copied().map(shape).collect(),
        }
    }

    /// Every token keeps the length that it has without guidance.
    fn guide(positive: Tensor<3>, negative: Tensor<3>, scale: f64) -> Tensor<3> {
        let length = |x: &Tensor<3>| (x.clone() * x.clone()).sum_dim(2).sqrt();
        let guided = negative.clone() + (positive.clone() - negative) * scale;
        guided.clone() * (length(&positive) / length(&guided))
    }
}

fn format_of(vae: &AutoencoderKlQwenImageConfig) -> LatentFormat {
    LatentFormat {
        scale_factor: vae.scale_factor(),
        channels: vae.z_dim,
    }
}
