//! Qwen-Image-Edit-2509, as diffusers' `QwenImageEditPlusPipeline` has it: one to three source images, whose latent
//! tokens are appended to the noise tokens, and which the text encoder sees too, in a smaller size.

mod encoders;
mod outline;
mod template;
#[cfg(test)]
mod tests;

use std::path::Path;

use burn::module::{Module, ModuleMapper, ModuleVisitor};
use burn::tensor::{DType, Device, Tensor};

pub use self::encoders::{QwenImageEditEncoders, TextPositions};
use super::base::{BaseModel, Files, Images, Part};
use super::folder::{Width, check_widths, no_encoders, save_index};
use super::outline::{Assumed, Outline};
use super::quiet::Quiet;
use super::size::area_size;
use super::{
    ConditionShape, EditError, ImageSize, LatentFormat, Parts, PromptBatch, PromptInput,
    PromptShape, TextStart, TrainedPart,
};
use crate::autoencoder_kl_qwen_image::AutoencoderKlQwenImageConfig;
use crate::init::Init;
use crate::lora::{LoraAdapter, Projection, Tracked, Trained};
use crate::qwen_image::{
    ImageShape, QwenImageCondition, QwenImageContext, QwenImageTransformer,
    QwenImageTransformerConfig,
};
use crate::weights::{LoadError, Pretrained, PretrainedConfig};

/// Pixels of a source image for each token of it that the text encoder makes.
const PIXELS_PER_TOKEN: usize = 28 * 28;
/// Tokens of an instruction of common length and of the markup around it.
const INSTRUCTION_TOKENS: usize = 64;

/// Qwen-Image-Edit-2509.
#[derive(Clone, Debug)]
pub struct QwenImageEdit {
    /// Predicts velocities; frozen unless someone trains it.
    pub transformer: QwenImageTransformer,
    /// What else the pipeline is made of; a learner needs none of it.
    pub encoders: Option<QwenImageEditEncoders>,
    /// The sizes of source images; no field of a pipeline folder.
    pub areas: Areas,
    format: LatentFormat,
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

impl QwenImageEdit {
    /// A model of the given parts.
    pub fn new(transformer: QwenImageTransformer, encoders: QwenImageEditEncoders) -> Self {
        Self {
            transformer,
            format: format_of(encoders.vae.config()),
            encoders: Some(encoders),
            areas: Areas::default(),
        }
    }

    fn encoders(&self) -> Result<&QwenImageEditEncoders, EditError> {
        self.encoders.as_ref().ok_or(EditError::NoEncoders)
    }

    fn check(&self, folder: &Path) -> Result<(), LoadError> {
        let encoders = self.encoders.as_ref();
        let text = encoders.map(|encoders| encoders.text_encoder.config().text.hidden_size);
        check(folder, self.transformer.config(), self.format, text)
    }
}

/// Whether the parts of a pipeline fit each other; `text` is the width of text tokens, if it is known.
fn check(
    folder: &Path,
    config: &QwenImageTransformerConfig,
    format: LatentFormat,
    text: Option<usize>,
) -> Result<(), LoadError> {
    let [_, token] = format.shape(ImageSize::square(format.unit()));
    let widths = [
        Width::new(
            "in_channels",
            config.in_channels,
            Some(token),
            "four times vae/config.json's z_dim",
        ),
        Width::new(
            "out_channels",
            config.out_features(),
            Some(token),
            "vae/config.json's z_dim, with a patch_size of 2",
        ),
        Width::new(
            "joint_attention_dim",
            config.joint_attention_dim,
            text,
            "text_encoder/config.json's hidden_size",
        ),
    ];
    check_widths(folder, widths)
}

impl BaseModel for QwenImageEdit {
    const CLASS: &'static str = "QwenImageEditPlusPipeline";
    const PARTS: &'static [Part] = &[
        Part::transformers("processor", "Qwen2_5_VLProcessor"),
        Part::scheduler(),
        Part::transformers("text_encoder", "Qwen2_5_VLForConditionalGeneration"),
        Part::transformers("tokenizer", "PreTrainedTokenizerFast"),
        Part::diffusers("transformer", "QwenImageTransformer2DModel"),
        Part::diffusers("vae", "AutoencoderKLQwenImage"),
    ];
    const ABSENT_PARTS: &'static [&'static str] = &[];
    const SOURCES_MAX: usize = 3;
    const PROMPT_SEES_SOURCES: bool = true;
    const TRAINS_TEXT_ENCODERS: bool = false;

    type Context = QwenImageContext;

    fn outline(folder: &Path, assumed: &Assumed<'_>) -> Result<Outline, LoadError> {
        outline::outline(folder, assumed)
    }

    fn load(files: Files<'_>) -> Result<Self, LoadError> {
        let Files { folder, device, .. } = files;
        let vae = AutoencoderKlQwenImageConfig::load(&folder.join("vae"))?;
        let transformer = folder.join("transformer");
        let transformer = QwenImageTransformer::load_as(&transformer, device, files.dtype)?;
        // No gradient ever reaches them: they stay off the autodiff device.
        let plain = device.clone().without_autodiff();
        let encoders = match files.parts {
            Parts::All => Some(QwenImageEditEncoders::load(folder, &plain, files.dtype)?),
            Parts::Transformer => None,
        };
        let model = Self {
            transformer: transformer.no_grad(),
            encoders,
            areas: Areas::default(),
            format: format_of(&vae),
        };
        model.check(folder)?;
        Ok(model)
    }

    fn random(files: Files<'_>, text: TextStart, init: &Init) -> Result<Self, LoadError> {
        let Files { folder, device, .. } = files;
        if text == TextStart::Random {
            return Err(LoadError::Unsupported {
                path: folder.join("text_encoder"),
                field: "start",
                value: "random".to_owned(),
                supported: "the folder's weights",
            });
        }
        let config = QwenImageTransformerConfig::load(&folder.join("transformer"))?;
        let transformer = QwenImageTransformer::init(&config, init).map(&mut Quiet::default());
        let encoders = QwenImageEditEncoders::load(folder, device, files.dtype)?;
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
        PromptShape {
            tokens: shape.sources * self.areas.condition / PIXELS_PER_TOKEN + INSTRUCTION_TOKENS,
            width: self.transformer.config().joint_attention_dim,
            pooled: None,
        }
    }

    fn preferred_size(&self, own: ImageSize) -> ImageSize {
        area_size(own, self.areas.source)
    }

    /// Text of any length is encoded whole.
    fn encode_prompts(
        &self,
        prompts: &[PromptInput<'_>],
        _max_sequence_length: usize,
        device: &Device,
    ) -> Result<PromptBatch, EditError> {
        let encoders = self.encoders()?;
        let encode = |input| encoders.encode_prompt(input, self.areas.condition, device);
        let prompts: Vec<_> = prompts.iter().map(encode).collect::<Result<_, _>>()?;
        Ok(PromptBatch::stack(&prompts))
    }

    fn encode_pixels(&self, pixels: Tensor<4>) -> Result<Tensor<4>, EditError> {
        Ok(self.encoders()?.vae.encode_scaled(pixels))
    }

    fn decode_latents(&self, latents: Tensor<4>) -> Result<Tensor<4>, EditError> {
        Ok(self.encoders()?.vae.decode_scaled(latents))
    }

    /// The model takes no guidance scale.
    fn prepare(
        &self,
        prompts: PromptBatch,
        images: Images<'_>,
        _guidance_scale: f64,
        _device: &Device,
    ) -> QwenImageContext {
        let shape = |size| {
            let [height, width] = self.format.grid(size);
            ImageShape {
                frames: 1,
                height,
                width,
            }
        };
        self.transformer.prepare(QwenImageCondition {
            encoder_hidden_states: prompts.tokens,
            text_lengths: prompts.lengths,
            img_shapes: images.sizes().map(shape).collect(),
        })
    }

    fn step(
        &self,
        hidden_states: Tensor<3>,
        kept: usize,
        t: Tensor<1>,
        context: &QwenImageContext,
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
        context: &'a QwenImageContext,
        trained: Trained<'a>,
    ) -> Tracked<'a> {
        self.transformer
            .tracked_step(hidden_states, kept, t, context, trained)
    }

    /// Every token keeps the length that it has without guidance.
    fn guide(positive: Tensor<3>, negative: Tensor<3>, scale: f64) -> Tensor<3> {
        let length = |x: &Tensor<3>| (x.clone() * x.clone()).sum_dim(2).sqrt();
        let guided = negative.clone() + (positive.clone() - negative) * scale;
        guided.clone() * (length(&positive) / length(&guided))
    }

    fn without_encoders(&self) -> Self {
        Self {
            transformer: self.transformer.valid(),
            encoders: None,
            ..*self
        }
    }

    fn merged(self, adapter: &LoraAdapter) -> Self {
        Self {
            transformer: self.transformer.merged(adapter),
            ..self
        }
    }

    fn visit_trained<V: ModuleVisitor>(&self, part: TrainedPart, visitor: &mut V) {
        assert_transformer(part);
        self.transformer.visit(visitor);
    }

    fn map_trained<M: ModuleMapper>(self, part: TrainedPart, mapper: &mut M) -> Self {
        assert_transformer(part);
        Self {
            transformer: self.transformer.map(mapper),
            ..self
        }
    }
}

fn assert_transformer(part: TrainedPart) {
    assert_eq!(
        part,
        TrainedPart::Transformer,
        "the text encoder stays as it is"
    );
}

fn format_of(vae: &AutoencoderKlQwenImageConfig) -> LatentFormat {
    LatentFormat {
        scale_factor: vae.scale_factor(),
        channels: vae.z_dim,
    }
}
