//! FLUX.1-Kontext, as diffusers' `FluxKontextPipeline` has it: the source image's latent tokens are appended to the
//! noise tokens, told apart by their first position axis; CLIP's pooled text and the guidance scale go with time.

mod encoders;
mod outline;

use std::path::Path;

use burn::module::{Module, ModuleMapper, ModuleVisitor};
use burn::tensor::{DType, Device, Tensor, TensorData};

pub use self::encoders::FluxKontextEncoders;
use super::base::{BaseModel, Files, Images, Part};
use super::folder::{Width, check_widths, no_encoders, save_index};
use super::outline::{Assumed, Outline};
use super::quiet::Quiet;
use super::size::preferred_size;
use super::{
    ConditionShape, EditError, ImageSize, LatentFormat, Parts, PromptBatch, PromptInput,
    PromptShape, TextStart, TrainedPart,
};
use crate::autoencoder_kl::AutoencoderKlConfig;
use crate::flux::{FluxCondition, FluxContext, FluxTransformer, FluxTransformerConfig};
use crate::init::Init;
use crate::lora::{LoraAdapter, Projection, Tracked, Trained};
use crate::weights::{LoadError, Pretrained, PretrainedConfig};

/// FLUX.1-Kontext.
#[derive(Clone, Debug)]
pub struct FluxKontext {
    /// Predicts velocities; frozen unless someone trains it.
    pub transformer: FluxTransformer,
    /// What else the pipeline is made of; a learner needs none of it.
    pub encoders: Option<FluxKontextEncoders>,
    format: LatentFormat,
}

impl FluxKontext {
    /// A model of the given parts.
    pub fn new(transformer: FluxTransformer, encoders: FluxKontextEncoders) -> Self {
        Self {
            transformer,
            format: format_of(encoders.vae.config()),
            encoders: Some(encoders),
        }
    }

    fn encoders(&self) -> Result<&FluxKontextEncoders, EditError> {
        self.encoders.as_ref().ok_or(EditError::NoEncoders)
    }

    fn check(&self, folder: &Path) -> Result<(), LoadError> {
        let encoders = self.encoders.as_ref();
        let fed = Fed {
            text: encoders.map(|encoders| encoders.text_encoder_2.config().d_model),
            pooled: encoders.map(|encoders| encoders.text_encoder.config().hidden_size),
        };
        check(folder, self.transformer.config(), self.format, fed)
    }
}

/// Widths of what the text encoders give to the transformer, if they are known.
struct Fed {
    text: Option<usize>,
    pooled: Option<usize>,
}

/// Whether the parts of a pipeline fit each other.
fn check(
    folder: &Path,
    config: &FluxTransformerConfig,
    format: LatentFormat,
    fed: Fed,
) -> Result<(), LoadError> {
    let [_, token] = format.shape(ImageSize::square(format.unit()));
    let widths = [
        Width::new(
            "in_channels",
            config.in_channels,
            Some(token),
            "four times vae/config.json's latent_channels",
        ),
        Width::new(
            "out_channels",
            config.out_features(),
            Some(token),
            "as many as in_channels",
        ),
        Width::new(
            "joint_attention_dim",
            config.joint_attention_dim,
            fed.text,
            "text_encoder_2/config.json's d_model",
        ),
        Width::new(
            "pooled_projection_dim",
            config.pooled_projection_dim,
            fed.pooled,
            "text_encoder/config.json's hidden_size",
        ),
    ];
    check_widths(folder, widths)
}

impl BaseModel for FluxKontext {
    const CLASS: &'static str = "FluxKontextPipeline";
    const PARTS: &'static [Part] = &[
        Part::scheduler(),
        Part::transformers("text_encoder", "CLIPTextModel"),
        Part::transformers("text_encoder_2", "T5EncoderModel"),
        Part::transformers("tokenizer", "PreTrainedTokenizerFast"),
        Part::transformers("tokenizer_2", "PreTrainedTokenizerFast"),
        Part::diffusers("transformer", "FluxTransformer2DModel"),
        Part::diffusers("vae", "AutoencoderKL"),
    ];
    const ABSENT_PARTS: &'static [&'static str] = &["feature_extractor", "image_encoder"];
    const SOURCES_MAX: usize = 1;
    const PROMPT_SEES_SOURCES: bool = false;
    const TRAINS_TEXT_ENCODERS: bool = true;

    type Context = FluxContext;

    fn outline(folder: &Path, assumed: &Assumed<'_>) -> Result<Outline, LoadError> {
        outline::outline(folder, assumed)
    }

    fn load(files: Files<'_>) -> Result<Self, LoadError> {
        let Files { folder, device, .. } = files;
        let vae = AutoencoderKlConfig::load(&folder.join("vae"))?;
        let transformer = folder.join("transformer");
        let transformer = FluxTransformer::load_as(&transformer, device, files.dtype)?;
        // No gradient ever reaches them: they stay off the autodiff device.
        let plain = device.clone().without_autodiff();
        let encoders = match files.parts {
            Parts::All => Some(FluxKontextEncoders::load(folder, &plain, files.dtype)?),
            Parts::Transformer => None,
        };
        let model = Self {
            transformer: transformer.no_grad(),
            encoders,
            format: format_of(&vae),
        };
        model.check(folder)?;
        Ok(model)
    }

    fn random(files: Files<'_>, text: TextStart, init: &Init) -> Result<Self, LoadError> {
        let Files { folder, device, .. } = files;
        let config = FluxTransformerConfig::load(&folder.join("transformer"))?;
        let transformer = FluxTransformer::init(&config, init).map(&mut Quiet::default());
        let encoders = match text {
            TextStart::Weights => FluxKontextEncoders::load(folder, device, files.dtype)?,
            TextStart::Random => FluxKontextEncoders::random_text(folder, device, init)?,
        };
        let model = Self::new(transformer, encoders);
        model.check(folder)?;
        Ok(model)
    }

    fn save(&self, folder: &Path) -> Result<(), LoadError> {
        let encoders = self.encoders.as_ref().ok_or_else(|| no_encoders(folder))?;
        self.transformer.save(&folder.join("transformer"))?;
        encoders.save(folder)?;
        save_index::<Self>(folder)
    }

    fn format(&self) -> LatentFormat {
        self.format
    }

    fn projections(&self) -> &[Projection] {
        self.transformer.projections()
    }

    fn dtype(&self) -> DType {
        self.transformer.dtype()
    }

    fn prompt_shape(&self, shape: ConditionShape) -> PromptShape {
        let config = self.transformer.config();
        PromptShape {
            tokens: shape.max_sequence_length,
            width: config.joint_attention_dim,
            pooled: Some(config.pooled_projection_dim),
        }
    }

    fn preferred_size(&self, own: ImageSize) -> ImageSize {
        preferred_size(own, self.format.unit())
    }

    fn encode_prompts(
        &self,
        prompts: &[PromptInput<'_>],
        max_sequence_length: usize,
        device: &Device,
    ) -> Result<PromptBatch, EditError> {
        self.encoders()?
            .encode_prompts(prompts, max_sequence_length, device)
    }

    fn encode_pixels(&self, pixels: Tensor<4>) -> Result<Tensor<4>, EditError> {
        Ok(self.encoders()?.vae.encode_scaled(pixels))
    }

    fn decode_latents(&self, latents: Tensor<4>) -> Result<Tensor<4>, EditError> {
        Ok(self.encoders()?.vae.decode_scaled(latents))
    }

    fn prepare(
        &self,
        prompts: PromptBatch,
        images: Images<'_>,
        guidance_scale: f64,
        device: &Device,
    ) -> FluxContext {
        let [_, text, _] = prompts.tokens.dims();
        let guided = self.transformer.config().guidance_embeds;
        self.transformer.prepare(FluxCondition {
            encoder_hidden_states: prompts.tokens,
            pooled_projections: prompts.pooled.expect("FLUX's prompts are pooled"),
            guidance: guided.then(|| Tensor::full([1], guidance_scale, (device, DType::F32))),
            img_ids: image_ids(self.format, images, device),
            txt_ids: Tensor::zeros([text, 3], device),
        })
    }

    fn step(
        &self,
        hidden_states: Tensor<3>,
        kept: usize,
        t: Tensor<1>,
        context: &FluxContext,
        adapter: Option<&LoraAdapter>,
    ) -> Tensor<3> {
        self.transformer
            .step(hidden_states, kept, t, context, adapter)
    }

    fn tracked_step<'a>(
        &'a self,
        hidden_states: Tensor<3>,
        kept: usize,
        t: Tensor<1>,
        context: &'a FluxContext,
        trained: Trained<'a>,
    ) -> Tracked<'a> {
        self.transformer
            .tracked_step(hidden_states, kept, t, context, trained)
    }

    fn without_encoders(&self) -> Self {
        Self {
            transformer: self.transformer.valid(),
            encoders: None,
            format: self.format,
        }
    }

    fn merged(self, adapter: &LoraAdapter) -> Self {
        Self {
            transformer: self.transformer.merged(adapter),
            ..self
        }
    }

    fn visit_trained<V: ModuleVisitor>(&self, part: TrainedPart, visitor: &mut V) {
        self.transformer.visit(visitor);
        if let (TrainedPart::TransformerAndText, Some(encoders)) = (part, &self.encoders) {
            encoders.text_encoder.visit(visitor);
            encoders.text_encoder_2.visit(visitor);
        }
    }

    fn map_trained<M: ModuleMapper>(self, part: TrainedPart, mapper: &mut M) -> Self {
        let transformer = self.transformer.map(mapper);
        let encoders = match (part, self.encoders) {
            (TrainedPart::TransformerAndText, Some(encoders)) => Some(FluxKontextEncoders {
                text_encoder: encoders.text_encoder.map(mapper),
                text_encoder_2: encoders.text_encoder_2.map(mapper),
                ..encoders
            }),
            (_, encoders) => encoders,
        };
        Self {
            transformer,
            encoders,
            format: self.format,
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
fn image_ids(format: LatentFormat, images: Images<'_>, device: &Device) -> Tensor<2> {
    let mut ids = Vec::new();
    for (image, size) in images.sizes().enumerate() {
        let [rows, columns] = format.grid(size);
        let places = (0..rows).flat_map(|row| (0..columns).map(move |column| (row, column)));
        ids.extend(places.flat_map(|(row, column)| [image as f32, row as f32, column as f32]));
    }
    let count = ids.len() / 3;
    Tensor::from_data(TensorData::new(ids, [count, 3]), device)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_tell_result_and_source_apart() {
        let format = LatentFormat {
            scale_factor: 8,
            channels: 3,
        };
        let size = ImageSize {
            height: 16,
            width: 32,
        };
        let images = Images {
            size,
            source_sizes: &[ImageSize::square(16)],
        };
        let ids = image_ids(format, images, &Device::flex()).into_data();
        let ids: Vec<f32> = ids.iter().collect();
        assert_eq!(ids, [0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0]);
    }
}
