//! The table of base models, and the one that an editor holds.

use std::path::Path;

use burn::module::{ModuleMapper, ModuleVisitor};
use burn::tensor::{DType, Device, Tensor};
use image::RgbImage;

use super::base_model::{BaseModel, ContextOf, Pipeline, PipelineClass};
use super::flux_kontext::{self, FluxKontextPipeline};
use super::folder::INDEX_FILE;
use super::outline::{Assumed, Outline};
use super::qwen_image_edit::{self, QwenImageEditPlusPipeline};
use super::{
    ConditionShape, EditError, FluxKontext, ImageSize, LatentFormat, Layout, Parts, PromptBatch,
    PromptInput, PromptShape, QwenImageEdit,
};
use crate::dit::{Evaluation, Transformer};
use crate::init::Init;
use crate::lora::{LoraAdapter, Projection};
use crate::weights::{LoadError, Pretrained};

/// Where and how a base model is loaded.
#[derive(Clone, Copy)]
pub(super) struct Files<'a> {
    /// The diffusers pipeline folder.
    pub(super) folder: &'a Path,
    pub(super) device: &'a Device,
    pub(super) parts: Parts,
    /// Float type of the large models' weights.
    pub(super) dtype: DType,
}

/// What text encoders start from where the transformer starts at random.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TextStart {
    /// The folder's weights.
    Weights,
    /// Random parameters of the folder's configurations.
    Random,
}

/// The networks that full training changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TrainedPart {
    /// The transformer.
    Transformer,
    /// The transformer, then the text encoders.
    TransformerAndText,
}

/// One of the base models.
#[derive(Clone, Debug)]
#[allow(
    clippy::large_enum_variant,
    reason = "a process has one, and it is all handles"
)]
pub enum Base {
    /// See [`FluxKontext`].
    FluxKontext(FluxKontext),
    /// See [`QwenImageEdit`].
    QwenImageEdit(QwenImageEdit),
}

/// What all evaluations of one base model under one condition share.
#[derive(Clone, Debug)]
#[allow(clippy::large_enum_variant, reason = "there is one per condition")]
pub(super) enum Context {
    FluxKontext(ContextOf<FluxKontextPipeline>),
    QwenImageEdit(ContextOf<QwenImageEditPlusPipeline>),
}

/// Asks whichever base model it is.
macro_rules! each {
    ($base:expr, $model:ident => $ask:expr) => {
        match $base {
            Base::FluxKontext($model) => $ask,
            Base::QwenImageEdit($model) => $ask,
        }
    };
}

/// How a base model is made of a pipeline folder.
pub(crate) struct Loader {
    pub(crate) class: &'static PipelineClass,
    /// The frozen model.
    pub(super) load: fn(Files<'_>) -> Result<Base, LoadError>,
    /// The model with a random transformer.
    pub(super) random: fn(Files<'_>, TextStart, &Init) -> Result<Base, LoadError>,
    /// What the configurations say, and whether they fit each other.
    pub(super) outline: ReadOutline,
    /// What of that is needed before loading.
    pub(super) layout: fn(&Path) -> Result<Layout, LoadError>,
}

type ReadOutline = fn(&Path, &Assumed<'_>) -> Result<Outline, LoadError>;

/// The table, a line per base model.
pub(crate) static LOADERS: [Loader; 2] = [
    Loader::of::<FluxKontextPipeline>(flux_kontext::outline),
    Loader::of::<QwenImageEditPlusPipeline>(qwen_image_edit::outline),
];

impl Loader {
    const fn of<P: Pipeline>(outline: ReadOutline) -> Self
    where
        Base: From<BaseModel<P>>,
    {
        Self {
            class: P::CLASS,
            load: |files| BaseModel::<P>::load(files).map(Base::from),
            random: |files, text, init| BaseModel::<P>::random(files, text, init).map(Base::from),
            outline,
            layout: Layout::of::<P>,
        }
    }

    /// The loader of pipelines of the class called `name`; `folder` is for the error.
    pub(super) fn find(name: &str, folder: &Path) -> Result<&'static Self, LoadError> {
        let found = LOADERS.iter().find(|loader| loader.class.name == name);
        found.ok_or_else(|| {
            let supported = supported_classes();
            LoadError::format(
                &folder.join(INDEX_FILE),
                format!("_class_name = {name} is not supported; supported: {supported}"),
            )
        })
    }
}

/// The classes of supported pipelines, for messages.
pub(crate) fn supported_classes() -> String {
    LOADERS
        .each_ref()
        .map(|loader| loader.class.name)
        .join(", ")
}

impl From<FluxKontext> for Base {
    fn from(model: FluxKontext) -> Self {
        Self::FluxKontext(model)
    }
}

impl From<QwenImageEdit> for Base {
    fn from(model: QwenImageEdit) -> Self {
        Self::QwenImageEdit(model)
    }
}

impl Base {
    pub(super) fn class(&self) -> &'static PipelineClass {
        match self {
            Self::FluxKontext(_) => FluxKontextPipeline::CLASS,
            Self::QwenImageEdit(_) => QwenImageEditPlusPipeline::CLASS,
        }
    }

    pub(super) fn has_encoders(&self) -> bool {
        each!(self, model => model.encoders.is_some())
    }

    pub(super) fn load_encoders(&mut self, files: Files<'_>) -> Result<(), LoadError> {
        each!(self, model => model.load_encoders(files))
    }

    pub(super) fn unload_encoders(&mut self) {
        each!(self, model => model.encoders = None);
    }

    pub(super) fn save(&self, folder: &Path) -> Result<(), LoadError> {
        each!(self, model => model.save(folder))
    }

    pub(super) fn format(&self) -> LatentFormat {
        each!(self, model => model.format)
    }

    pub(super) fn projections(&self) -> &[Projection] {
        each!(self, model => model.transformer.projections())
    }

    /// Float type of the transformer's weights.
    pub(super) fn dtype(&self) -> DType {
        each!(self, model => model.transformer.dtype())
    }

    pub(super) fn prompt_shape(&self, shape: ConditionShape) -> PromptShape {
        each!(self, model => model.pipeline.prompt_shape(model.transformer.config(), shape))
    }

    pub(super) fn preferred_size(&self, own: ImageSize) -> ImageSize {
        each!(self, model => model.pipeline.preferred_size(own, model.format))
    }

    /// Whether so many source images can be edited.
    pub(super) fn check_sources(&self, sources: &[RgbImage]) -> Result<(), EditError> {
        let (found, class) = (sources.len(), self.class());
        if (1..=class.sources_max).contains(&found) {
            return Ok(());
        }
        Err(EditError::Sources {
            found,
            class: class.name,
            sources_max: class.sources_max,
        })
    }

    pub(super) fn encode_prompts(
        &self,
        prompts: &[PromptInput<'_>],
        max_sequence_length: usize,
        device: &Device,
    ) -> Result<PromptBatch, EditError> {
        each!(self, model => model.encode_prompts(prompts, max_sequence_length, device))
    }

    /// # Shapes
    /// * pixels in -1..1: `[B, 3, H, W]`
    /// * output: `[B, C, h, w]`
    pub(super) fn encode_pixels(&self, pixels: Tensor<4>) -> Result<Tensor<4>, EditError> {
        each!(self, model => Ok(model.encoders()?.vae.encode_scaled(pixels)))
    }

    /// # Shapes
    /// * latents: `[B, C, h, w]`
    /// * output, about -1..1: `[B, 3, H, W]`
    pub(super) fn decode_latents(&self, latents: Tensor<4>) -> Result<Tensor<4>, EditError> {
        each!(self, model => Ok(model.encoders()?.vae.decode_scaled(latents)))
    }

    /// What all evaluations under some conditions share; `sizes` are the result's and the sources'.
    pub(super) fn prepare(
        &self,
        prompts: PromptBatch,
        sizes: &[ImageSize],
        guidance_scale: f64,
        device: &Device,
    ) -> Context {
        match self {
            Self::FluxKontext(model) => {
                Context::FluxKontext(model.prepare(prompts, sizes, guidance_scale, device))
            }
            Self::QwenImageEdit(model) => {
                Context::QwenImageEdit(model.prepare(prompts, sizes, guidance_scale, device))
            }
        }
    }

    /// As [`Transformer::evaluation`].
    ///
    /// # Panics
    /// If another base model prepared the context.
    pub(super) fn evaluation<'a>(
        &'a self,
        hidden_states: Tensor<3>,
        kept: usize,
        t: Tensor<1>,
        context: &'a Context,
    ) -> Evaluation<'a> {
        match (self, context) {
            (Self::FluxKontext(model), Context::FluxKontext(context)) => model
                .transformer
                .evaluation(hidden_states, kept, t, context),
            (Self::QwenImageEdit(model), Context::QwenImageEdit(context)) => model
                .transformer
                .evaluation(hidden_states, kept, t, context),
            _ => panic!("a context is used by the base model that prepared it"),
        }
    }

    pub(super) fn guide(&self, positive: Tensor<3>, negative: Tensor<3>, scale: f64) -> Tensor<3> {
        match self {
            Self::FluxKontext(_) => FluxKontextPipeline::guide(positive, negative, scale),
            Self::QwenImageEdit(_) => QwenImageEditPlusPipeline::guide(positive, negative, scale),
        }
    }

    /// Without encoders, off the autodiff device.
    pub(super) fn without_encoders(&self) -> Self {
        each!(self, model => model.without_encoders().into())
    }

    /// With an adapter's products added to the transformer's weights.
    pub(super) fn merged(self, adapter: &LoraAdapter) -> Self {
        each!(self, model => model.merged(adapter).into())
    }

    pub(super) fn visit_trained<V: ModuleVisitor>(&self, part: TrainedPart, visitor: &mut V) {
        each!(self, model => model.visit_trained(part, visitor));
    }

    pub(super) fn map_trained<M: ModuleMapper>(self, part: TrainedPart, mapper: &mut M) -> Self {
        each!(self, model => model.map_trained(part, mapper).into())
    }
}
