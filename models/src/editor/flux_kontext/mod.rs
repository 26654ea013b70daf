//! FLUX.1-Kontext, as diffusers' `FluxKontextPipeline` has it: the source image's latent tokens are appended to the
//! noise tokens, told apart by their first position axis; CLIP's pooled text and the guidance scale go with time.

mod encoders;
mod outline;

use std::path::Path;

use burn::tensor::{DType, Device, Tensor, TensorData};

pub use self::encoders::FluxKontextEncoders;
pub(super) use self::outline::outline;
use super::base_model::{BaseModel, Part, Pipeline, PipelineClass, TextWidths};
use super::folder::Width;
use super::size::preferred_size;
use super::{
    ConditionShape, EditError, ImageSize, LatentFormat, PromptBatch, PromptInput, PromptShape,
};
use crate::autoencoder_kl::AutoencoderKlConfig;
use crate::flux::{FluxCondition, FluxTransformer, FluxTransformerConfig};
use crate::weights::{LoadError, PretrainedConfig};

/// FLUX.1-Kontext.
pub type FluxKontext = BaseModel<FluxKontextPipeline>;

/// What FLUX.1-Kontext does in its own way.
#[derive(Clone, Copy, Debug, Default)]
pub struct FluxKontextPipeline;

impl Pipeline for FluxKontextPipeline {
    const CLASS: &'static PipelineClass = &PipelineClass {
        name: "FluxKontextPipeline",
        parts: &[
            Part::scheduler(),
            Part::transformers("text_encoder", "CLIPTextModel"),
            Part::transformers("text_encoder_2", "T5EncoderModel"),
            Part::transformers("tokenizer", "PreTrainedTokenizerFast"),
            Part::transformers("tokenizer_2", "PreTrainedTokenizerFast"),
            Part::diffusers("transformer", "FluxTransformer2DModel"),
            Part::diffusers("vae", "AutoencoderKL"),
        ],
        absent_parts: &["feature_extractor", "image_encoder"],
        sources_max: 1,
        prompt_sees_sources: false,
        trains_text_encoders: true,
    };
    type Transformer = FluxTransformer;
    type Encoders = FluxKontextEncoders;

    fn format(folder: &Path) -> Result<LatentFormat, LoadError> {
        AutoencoderKlConfig::load(&folder.join("vae")).map(|vae| format_of(&vae))
    }

    fn widths(
        transformer: &FluxTransformerConfig,
        format: LatentFormat,
        text: TextWidths,
    ) -> Vec<Width> {
        let channels = [transformer.in_channels, transformer.out_features()];
        let supported = [
            "four times vae/config.json's latent_channels",
            "as many as in_channels",
        ];
        let [in_channels, out_channels] = Width::of_images(channels, format, supported);
        vec![
            in_channels,
            out_channels,
            Width::new(
                "joint_attention_dim",
                transformer.joint_attention_dim,
                text.tokens,
                "text_encoder_2/config.json's d_model",
            ),
            Width::new(
                "pooled_projection_dim",
                transformer.pooled_projection_dim,
                text.pooled,
                "text_encoder/config.json's hidden_size",
            ),
        ]
    }

    fn prompt_shape(
        &self,
        transformer: &FluxTransformerConfig,
        shape: ConditionShape,
    ) -> PromptShape {
        PromptShape {
            tokens: shape.max_sequence_length,
            width: transformer.joint_attention_dim,
            pooled: Some(transformer.pooled_projection_dim),
        }
    }

    fn preferred_size(&self, own: ImageSize, format: LatentFormat) -> ImageSize {
        preferred_size(own, format.unit())
    }

    fn encode_prompts(
        &self,
        encoders: &FluxKontextEncoders,
        prompts: &[PromptInput<'_>],
        max_sequence_length: usize,
        device: &Device,
    ) -> Result<PromptBatch, EditError> {
        encoders.encode_prompts(prompts, max_sequence_length, device)
    }

    fn condition(
        transformer: &FluxTransformerConfig,
        prompts: PromptBatch,
        grids: &[[usize; 2]],
        guidance_scale: f64,
        device: &Device,
    ) -> FluxCondition {
        let [_, text, _] = prompts.tokens.dims();
        let guided = transformer.guidance_embeds;
        FluxCondition {
            encoder_hidden_states: prompts.tokens,
            pooled_projections: prompts.pooled.expect("FLUX's prompts are pooled"),
            guidance: guided.then(|| Tensor::full([1], guidance_scale, (device, DType::F32))),
            // Positions become tables on the host, so that is where they stay: a device would be waited for.
            img_ids: image_ids(grids),
            txt_ids: Tensor::zeros([text, 3], &Device::flex()),
        }
    }
}

/// How `vae` encodes images.
fn format_of(vae: &AutoencoderKlConfig) -> LatentFormat {
    LatentFormat {
        scale_factor: vae.scale_factor(),
        channels: vae.latent_channels,
    }
}

/// Positions (image, row, column) of the result's tokens, image 0, then the source's, image 1.
///
/// # Shapes
/// * output: `[S + R, 3]`
fn image_ids(grids: &[[usize; 2]]) -> Tensor<2> {
    let mut ids = Vec::new();
    for (image, [rows, columns]) in grids.iter().enumerate() {
        let places = (0..*rows).flat_map(|row| (0..*columns).map(move |column| (row, column)));
        ids.extend(places.flat_map(|(row, column)| [image as f32, row as f32, column as f32]));
    }
    let count = ids.len() / 3;
    Tensor::from_data(TensorData::new(ids, [count, 3]), &Device::flex())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_tell_result_and_source_apart() {
        let ids = image_ids(&[[1, 2], [1, 1]]).into_data();
        let ids: Vec<f32> = ids.iter().collect();
        assert_eq!(ids, [0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0]);
    }
}
