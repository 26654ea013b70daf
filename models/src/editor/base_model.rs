//! What is common to base models, and what a pipeline does in its own way.

use std::fmt::Debug;
use std::path::Path;

use burn::module::{Module, ModuleMapper, ModuleVisitor};
use burn::tensor::{DType, Device, Tensor};

use super::base::{Files, TextStart, TrainedPart};
use super::folder::{Width, check_widths, save_index};
use super::quiet::Quiet;
use super::{
    ConditionShape, EditError, ImageSize, LatentFormat, Parts, PromptBatch, PromptInput,
    PromptShape,
};
use crate::dit::Transformer;
use crate::init::Init;
use crate::lora::LoraAdapter;
use crate::memory;
use crate::weights::{LoadError, Pretrained, PretrainedConfig};

/// A part of a pipeline folder, as `model_index.json` lists it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Part {
    /// Its name, which is its folder's.
    pub(crate) name: &'static str,
    /// The Python library of its class.
    pub(crate) library: &'static str,
    /// The class that it usually has.
    pub(crate) class: &'static str,
}

impl Part {
    pub(super) const fn diffusers(name: &'static str, class: &'static str) -> Self {
        Self {
            name,
            library: "diffusers",
            class,
        }
    }

    pub(super) const fn transformers(name: &'static str, class: &'static str) -> Self {
        Self {
            name,
            library: "transformers",
            class,
        }
    }

    /// The only scheduler that there is.
    pub(super) const fn scheduler() -> Self {
        Self::diffusers("scheduler", "FlowMatchEulerDiscreteScheduler")
    }
}

/// What is known of a pipeline without its folder.
#[derive(Debug)]
pub struct PipelineClass {
    /// `_class_name` of the diffusers pipeline.
    pub(crate) name: &'static str,
    /// The parts that loading reads.
    pub(crate) parts: &'static [Part],
    /// Optional parts, ignored here and listed as absent.
    pub(super) absent_parts: &'static [&'static str],
    /// Most source images.
    pub(super) sources_max: usize,
    /// Whether the text encoder sees the source images.
    pub(super) prompt_sees_sources: bool,
    /// Whether full training may change the text encoders too.
    pub(super) trains_text_encoders: bool,
}

/// What a pipeline does in its own way. Latents are what diffusion sees: shifted and scaled, `[B, C, h, w]`, or packed
/// into tokens.
pub trait Pipeline: Clone + Debug + Default {
    /// What is known of it without its folder.
    const CLASS: &'static PipelineClass;
    /// What predicts velocities.
    type Transformer: Transformer;
    /// What turns texts and images into what the transformer sees, and back.
    type Encoders: Encoders;

    /// How the autoencoder of a pipeline folder encodes images.
    fn format(folder: &Path) -> Result<LatentFormat, LoadError>;

    /// The fields of the transformer's configuration that the other parts decide.
    fn widths(
        transformer: &ConfigOf<Self::Transformer>,
        format: LatentFormat,
        text: TextWidths,
    ) -> Vec<Width>;

    /// How much an instruction of common length is once it is encoded.
    fn prompt_shape(
        &self,
        transformer: &ConfigOf<Self::Transformer>,
        shape: ConditionShape,
    ) -> PromptShape;

    /// The size that a source image is given to the autoencoder in, if the model may choose.
    fn preferred_size(&self, own: ImageSize, format: LatentFormat) -> ImageSize;

    /// `max_sequence_length` is for models that pad and cut their text.
    fn encode_prompts(
        &self,
        encoders: &Self::Encoders,
        prompts: &[PromptInput<'_>],
        max_sequence_length: usize,
        device: &Device,
    ) -> Result<PromptBatch, EditError>;

    /// What the transformer is conditioned on. `grids` are the tokens in height and width of the result, then of the
    /// sources.
    fn condition(
        transformer: &ConfigOf<Self::Transformer>,
        prompts: PromptBatch,
        grids: &[[usize; 2]],
        guidance_scale: f64,
        device: &Device,
    ) -> <Self::Transformer as Transformer>::Condition;

    /// Classifier-free guidance: the velocity led away from the negative prompt's.
    fn guide(positive: Tensor<3>, negative: Tensor<3>, scale: f64) -> Tensor<3> {
        negative.clone() + (positive - negative) * scale
    }
}

type ConfigOf<M> = <M as Pretrained>::Config;

/// What turns texts and images into what a transformer sees, and back.
pub trait Encoders: Clone + Debug {
    /// The encoders of a diffusers pipeline folder; the text encoders' weights become `dtype`, the VAE's what
    /// [`vae_type`] says.
    ///
    /// # Errors
    /// If a part can't be loaded, or they do not fit each other.
    fn load(folder: &Path, device: &Device, dtype: DType) -> Result<Self, LoadError>;

    /// As [`Encoders::load`], with text encoders that have learned nothing.
    ///
    /// # Errors
    /// As [`Encoders::load`], or if full training leaves the text encoders as they are.
    fn random_text(folder: &Path, _device: &Device, _init: &Init) -> Result<Self, LoadError> {
        let (path, supported) = (folder.join("text_encoder"), "the folder's weights");
        Err(LoadError::unsupported(&path, "start", "random", supported))
    }

    /// Saves the encoders into a diffusers pipeline folder.
    ///
    /// # Errors
    /// If the folder can't be written.
    fn save(&self, folder: &Path) -> Result<(), LoadError>;

    /// How images become latent tokens.
    fn format(&self) -> LatentFormat;

    /// The widths of encoded text.
    fn text_widths(&self) -> TextWidths;

    /// Shows a visitor the text encoders' parameters.
    fn visit_text<V: ModuleVisitor>(&self, visitor: &mut V);

    /// The encoders with other parameters in the text encoders.
    fn map_text<M: ModuleMapper>(self, mapper: &mut M) -> Self;
}

/// The float type of an autoencoder beside large models of `dtype`. diffusers' pipelines compute it in theirs; on a CPU
/// convolutions of narrow types are slower than those of f32.
pub(super) fn vae_type(device: &Device, dtype: DType) -> DType {
    match memory::is_host(device) {
        true => DType::F32,
        false => dtype,
    }
}

/// Widths of what text encoders give to the transformer, where they are known.
#[derive(Debug, Clone, Copy, Default)]
pub struct TextWidths {
    /// Of a text token.
    pub tokens: Option<usize>,
    /// Of the pooled text.
    pub pooled: Option<usize>,
}

/// A base model: a transformer, and what a pipeline puts around it.
#[derive(Clone, Debug)]
pub struct BaseModel<P: Pipeline> {
    /// What the pipeline does in its own way.
    pub pipeline: P,
    /// Predicts velocities; frozen unless someone trains it.
    pub transformer: P::Transformer,
    /// The rest of the pipeline; a learner needs none of it.
    pub encoders: Option<P::Encoders>,
    pub(super) format: LatentFormat,
}

impl<P: Pipeline> BaseModel<P> {
    /// A model of the given parts.
    pub fn new(transformer: P::Transformer, encoders: P::Encoders) -> Self {
        Self {
            pipeline: P::default(),
            transformer,
            format: encoders.format(),
            encoders: Some(encoders),
        }
    }

    /// The frozen model of a pipeline folder.
    pub(super) fn load(files: Files<'_>) -> Result<Self, LoadError> {
        let Files { folder, device, .. } = files;
        let format = P::format(folder)?;
        let transformer = folder.join("transformer");
        let transformer = P::Transformer::load_as(&transformer, device, files.dtype)?;
        let mut model = Self {
            pipeline: P::default(),
            transformer: transformer.no_grad(),
            encoders: None,
            format,
        };
        match files.parts {
            Parts::All => model.load_encoders(files)?,
            Parts::Transformer => model.check(folder)?,
        }
        Ok(model)
    }

    /// A model whose transformer starts at random, quietly; of it, the folder needs only the configuration.
    pub(super) fn random(
        files: Files<'_>,
        text: TextStart,
        init: &Init,
    ) -> Result<Self, LoadError> {
        let Files { folder, device, .. } = files;
        let config = ConfigOf::<P::Transformer>::load(&folder.join("transformer"))?;
        let transformer = P::Transformer::init(&config, init).map(&mut Quiet::default());
        let encoders = match text {
            TextStart::Weights => P::Encoders::load(folder, device, files.dtype)?,
            TextStart::Random => P::Encoders::random_text(folder, device, init)?,
        };
        let model = Self::new(transformer, encoders);
        model.check(folder)?;
        Ok(model)
    }

    fn check(&self, folder: &Path) -> Result<(), LoadError> {
        let text = self.encoders.as_ref().map(Encoders::text_widths);
        let text = text.unwrap_or_default();
        check_widths(
            folder,
            P::widths(self.transformer.config(), self.format, text),
        )
    }

    /// Saves all but the scheduler.
    pub(super) fn save(&self, folder: &Path) -> Result<(), LoadError> {
        let encoders = self.encoders.as_ref().ok_or_else(|| {
            LoadError::format(folder, "an editor without its encoders can't be saved")
        })?;
        self.transformer.save(&folder.join("transformer"))?;
        encoders.save(folder)?;
        save_index(folder, P::CLASS)
    }

    /// Takes the encoders of a pipeline folder, whose transformer fits this one's.
    pub(super) fn load_encoders(&mut self, files: Files<'_>) -> Result<(), LoadError> {
        // No gradient ever reaches them: they stay off the autodiff device.
        let plain = files.device.clone().without_autodiff();
        self.encoders = Some(P::Encoders::load(files.folder, &plain, files.dtype)?);
        self.check(files.folder)
    }

    pub(super) fn encoders(&self) -> Result<&P::Encoders, EditError> {
        self.encoders.as_ref().ok_or(EditError::NoEncoders)
    }

    pub(super) fn encode_prompts(
        &self,
        prompts: &[PromptInput<'_>],
        max_sequence_length: usize,
        device: &Device,
    ) -> Result<PromptBatch, EditError> {
        let encoders = self.encoders()?;
        self.pipeline
            .encode_prompts(encoders, prompts, max_sequence_length, device)
    }

    pub(super) fn prepare(
        &self,
        prompts: PromptBatch,
        sizes: &[ImageSize],
        guidance_scale: f64,
        device: &Device,
    ) -> ContextOf<P> {
        let grids: Vec<_> = sizes.iter().map(|size| self.format.grid(*size)).collect();
        let config = self.transformer.config();
        let condition = P::condition(config, prompts, &grids, guidance_scale, device);
        self.transformer.prepare(condition)
    }

    pub(super) fn without_encoders(&self) -> Self {
        Self {
            pipeline: self.pipeline.clone(),
            transformer: self.transformer.valid(),
            encoders: None,
            format: self.format,
        }
    }

    pub(super) fn merged(self, adapter: &LoraAdapter) -> Self {
        Self {
            transformer: self.transformer.merged(adapter),
            ..self
        }
    }

    pub(super) fn visit_trained<V: ModuleVisitor>(&self, part: TrainedPart, visitor: &mut V) {
        self.transformer.visit(visitor);
        if let (true, Some(encoders)) = (Self::trains_text(part), &self.encoders) {
            encoders.visit_text(visitor);
        }
    }

    pub(super) fn map_trained<M: ModuleMapper>(self, part: TrainedPart, mapper: &mut M) -> Self {
        // The transformer first, as visited: what is kept per parameter is kept in this order.
        let transformer = self.transformer.map(mapper);
        let encoders = match Self::trains_text(part) {
            true => self.encoders.map(|encoders| encoders.map_text(mapper)),
            false => self.encoders,
        };
        Self {
            transformer,
            encoders,
            ..self
        }
    }

    fn trains_text(part: TrainedPart) -> bool {
        let text = part == TrainedPart::TransformerAndText;
        let may = P::CLASS.trains_text_encoders;
        assert!(may || !text, "the text encoder stays as it is");
        text
    }
}

pub(super) type ContextOf<P> = <<P as Pipeline>::Transformer as Transformer>::Context;
