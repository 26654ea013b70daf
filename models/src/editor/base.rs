//! The table of base models, and what the editor asks of each.

use std::fmt::Debug;
use std::path::Path;

use burn::module::{ModuleMapper, ModuleVisitor};
use burn::tensor::{DType, Device, Tensor};
use image::RgbImage;

use super::outline::{Assumed, Outline};
use super::{
    ConditionShape, EditError, FluxKontext, ImageSize, LatentFormat, Parts, PromptBatch,
    PromptInput, PromptShape, QwenImageEdit,
};
use crate::init::Init;
use crate::lora::{LoraAdapter, Projection, Tracked, Trained};
use crate::weights::LoadError;

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

/// The images that a batch's tokens are of.
#[derive(Clone, Copy)]
pub(super) struct Images<'a> {
    pub(super) size: ImageSize,
    pub(super) source_sizes: &'a [ImageSize],
}

impl Images<'_> {
    /// The result's size, then the sources'.
    pub(super) fn sizes(&self) -> impl Iterator<Item = ImageSize> {
        std::iter::once(self.size).chain(self.source_sizes.iter().copied())
    }
}

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

/// A base model. Latents are what diffusion sees: shifted and scaled, `[B, C, h, w]`, or packed into tokens.
pub(super) trait BaseModel: Clone + Debug + Sized {
    /// `_class_name` of its diffusers pipeline.
    const CLASS: &'static str;
    /// The parts that loading reads.
    const PARTS: &'static [Part];
    /// Parts that the pipeline may have in other hands, listed as absent.
    const ABSENT_PARTS: &'static [&'static str];
    /// Most source images.
    const SOURCES_MAX: usize;
    /// Whether the text encoder sees the source images.
    const PROMPT_SEES_SOURCES: bool;
    /// Whether full training may change the text encoders too.
    const TRAINS_TEXT_ENCODERS: bool;

    /// What all steps of one condition share.
    type Context: Clone + Debug;

    /// What the configurations of a pipeline folder say, and whether they fit each other.
    fn outline(folder: &Path, assumed: &Assumed<'_>) -> Result<Outline, LoadError>;

    /// The frozen model of a pipeline folder.
    fn load(files: Files<'_>) -> Result<Self, LoadError>;

    /// A model whose transformer starts at random, quietly; of it, the folder needs only the configuration.
    fn random(files: Files<'_>, text: TextStart, init: &Init) -> Result<Self, LoadError>;

    /// Saves all but the scheduler.
    fn save(&self, folder: &Path) -> Result<(), LoadError>;

    fn format(&self) -> LatentFormat;

    /// The layers that an adapter may change.
    fn projections(&self) -> &[Projection];

    /// Float type of the transformer's weights.
    fn dtype(&self) -> DType;

    /// How much an instruction of common length is once it is encoded.
    fn prompt_shape(&self, shape: ConditionShape) -> PromptShape;

    /// The size that a source image is given to the autoencoder in, if the model may choose.
    fn preferred_size(&self, own: ImageSize) -> ImageSize;

    /// `max_sequence_length` is for models that pad and cut their text.
    fn encode_prompts(
        &self,
        prompts: &[PromptInput<'_>],
        max_sequence_length: usize,
        device: &Device,
    ) -> Result<PromptBatch, EditError>;

    /// # Shapes
    /// * pixels in -1..1: `[B, 3, H, W]`
    fn encode_pixels(&self, pixels: Tensor<4>) -> Result<Tensor<4>, EditError>;

    /// # Shapes
    /// * output, about -1..1: `[B, 3, H, W]`
    fn decode_latents(&self, latents: Tensor<4>) -> Result<Tensor<4>, EditError>;

    /// Computes what all steps of some conditions share.
    fn prepare(
        &self,
        prompts: PromptBatch,
        images: Images<'_>,
        guidance_scale: f64,
        device: &Device,
    ) -> Self::Context;

    /// The velocity of the first `kept` image tokens.
    ///
    /// # Shapes
    /// * hidden_states: `[B, S + R, C]`, t in 0..1: `[B]`
    /// * output: `[B, kept, C]`
    fn step(
        &self,
        hidden_states: Tensor<3>,
        kept: usize,
        t: Tensor<1>,
        context: &Self::Context,
        adapter: Option<&LoraAdapter>,
    ) -> Tensor<3>;

    /// As [`BaseModel::step`], with the way back to an adapter that is being trained.
    ///
    /// # Shapes
    /// As [`BaseModel::step`].
    fn tracked_step<'a>(
        &'a self,
        hidden_states: Tensor<3>,
        kept: usize,
        t: Tensor<1>,
        context: &'a Self::Context,
        trained: Trained<'a>,
    ) -> Tracked<'a>;

    /// Classifier-free guidance: the velocity led away from the negative prompt's.
    fn guide(positive: Tensor<3>, negative: Tensor<3>, scale: f64) -> Tensor<3> {
        negative.clone() + (positive - negative) * scale
    }

    /// The model without encoders, off the autodiff device.
    fn without_encoders(&self) -> Self;

    /// The model with an adapter's products added to the transformer's weights.
    fn merged(self, adapter: &LoraAdapter) -> Self;

    fn visit_trained<V: ModuleVisitor>(&self, part: TrainedPart, visitor: &mut V);

    fn map_trained<M: ModuleMapper>(self, part: TrainedPart, mapper: &mut M) -> Self;
}

/// Makes the enum of the base models, which asks the one that it holds.
macro_rules! base_models {
    ($($name:ident,)*) => {
        /// One of the base models.
        #[derive(Clone, Debug)]
        #[allow(clippy::large_enum_variant, reason = "a process has one, and it is all handles")]
        pub enum Base {
            $(#[doc = concat!("See [`", stringify!($name), "`].")] $name($name),)*
        }

        /// What all steps of one condition share.
        #[derive(Clone, Debug)]
        #[allow(clippy::large_enum_variant, reason = "there is one per condition")]
        pub(super) enum Context {
            $($name(<$name as BaseModel>::Context),)*
        }

        $(impl From<$name> for Base {
            fn from(model: $name) -> Self {
                Self::$name(model)
            }
        })*

        impl Base {
            /// The supported pipelines, for messages.
            pub(crate) const CLASSES: &[&str] = &[$(<$name as BaseModel>::CLASS,)*];

            /// The parts that loading a pipeline of class `class` reads; none if it is not supported.
            pub(crate) fn parts_of(class: &str) -> &'static [Part] {
                $(if class == <$name as BaseModel>::CLASS {
                    return <$name as BaseModel>::PARTS;
                })*
                &[]
            }

            fn outline_class(
                class: &str,
                folder: &Path,
                assumed: &Assumed<'_>,
            ) -> Option<Result<Outline, LoadError>> {
                $(if class == <$name as BaseModel>::CLASS {
                    return Some(<$name as BaseModel>::outline(folder, assumed));
                })*
                None
            }

            fn load_class(class: &str, files: Files<'_>) -> Option<Result<Self, LoadError>> {
                $(if class == <$name as BaseModel>::CLASS {
                    return Some(<$name as BaseModel>::load(files).map(Self::$name));
                })*
                None
            }

            fn random_class(
                class: &str,
                files: Files<'_>,
                text: TextStart,
                init: &Init,
            ) -> Option<Result<Self, LoadError>> {
                $(if class == <$name as BaseModel>::CLASS {
                    return Some(<$name as BaseModel>::random(files, text, init).map(Self::$name));
                })*
                None
            }

            pub(super) fn class(&self) -> &'static str {
                match self { $(Self::$name(_) => <$name as BaseModel>::CLASS,)* }
            }

            pub(super) fn sources_max(&self) -> usize {
                match self { $(Self::$name(_) => <$name as BaseModel>::SOURCES_MAX,)* }
            }

            pub(super) fn prompt_sees_sources(&self) -> bool {
                match self { $(Self::$name(_) => <$name as BaseModel>::PROMPT_SEES_SOURCES,)* }
            }

            pub(super) fn trains_text_encoders(&self) -> bool {
                match self { $(Self::$name(_) => <$name as BaseModel>::TRAINS_TEXT_ENCODERS,)* }
            }

            pub(super) fn save(&self, folder: &Path) -> Result<(), LoadError> {
                match self { $(Self::$name(model) => model.save(folder),)* }
            }

            pub(super) fn format(&self) -> LatentFormat {
                match self { $(Self::$name(model) => model.format(),)* }
            }

            pub(super) fn projections(&self) -> &[Projection] {
                match self { $(Self::$name(model) => model.projections(),)* }
            }

            pub(super) fn dtype(&self) -> DType {
                match self { $(Self::$name(model) => model.dtype(),)* }
            }

            pub(super) fn prompt_shape(&self, shape: ConditionShape) -> PromptShape {
                match self { $(Self::$name(model) => model.prompt_shape(shape),)* }
            }

            pub(super) fn preferred_size(&self, own: ImageSize) -> ImageSize {
                match self { $(Self::$name(model) => model.preferred_size(own),)* }
            }

            pub(super) fn encode_prompts(
                &self,
                prompts: &[PromptInput<'_>],
                max_sequence_length: usize,
                device: &Device,
            ) -> Result<PromptBatch, EditError> {
                match self {
                    $(Self::$name(model) => model.encode_prompts(prompts, max_sequence_length, device),)*
                }
            }

            pub(super) fn encode_pixels(&self, pixels: Tensor<4>) -> Result<Tensor<4>, EditError> {
                match self { $(Self::$name(model) => model.encode_pixels(pixels),)* }
            }

            pub(super) fn decode_latents(&self, latents: Tensor<4>) -> Result<Tensor<4>, EditError> {
                match self { $(Self::$name(model) => model.decode_latents(latents),)* }
            }

            pub(super) fn prepare(
                &self,
                prompts: PromptBatch,
                images: Images<'_>,
                guidance_scale: f64,
                device: &Device,
            ) -> Context {
                match self {
                    $(Self::$name(model) => {
                        Context::$name(model.prepare(prompts, images, guidance_scale, device))
                    })*
                }
            }

            /// # Panics
            /// If another base model prepared the context.
            pub(super) fn step(
                &self,
                hidden_states: Tensor<3>,
                kept: usize,
                t: Tensor<1>,
                context: &Context,
                adapter: Option<&LoraAdapter>,
            ) -> Tensor<3> {
                match (self, context) {
                    $((Self::$name(model), Context::$name(context)) => {
                        model.step(hidden_states, kept, t, context, adapter)
                    })*
                    _ => panic!("a context is used by the base model that prepared it"),
                }
            }

            /// # Panics
            /// If another base model prepared the context.
            pub(super) fn tracked_step<'a>(
                &'a self,
                hidden_states: Tensor<3>,
                kept: usize,
                t: Tensor<1>,
                context: &'a Context,
                trained: Trained<'a>,
            ) -> Tracked<'a> {
                match (self, context) {
                    $((Self::$name(model), Context::$name(context)) => {
                        model.tracked_step(hidden_states, kept, t, context, trained)
                    })*
                    _ => panic!("a context is used by the base model that prepared it"),
                }
            }

            pub(super) fn guide(&self, positive: Tensor<3>, negative: Tensor<3>, scale: f64) -> Tensor<3> {
                match self {
                    $(Self::$name(_) => <$name as BaseModel>::guide(positive, negative, scale),)*
                }
            }

            pub(super) fn without_encoders(&self) -> Self {
                match self { $(Self::$name(model) => Self::$name(model.without_encoders()),)* }
            }

            pub(super) fn merged(self, adapter: &LoraAdapter) -> Self {
                match self { $(Self::$name(model) => Self::$name(model.merged(adapter)),)* }
            }

            pub(super) fn visit_trained<V: ModuleVisitor>(&self, part: TrainedPart, visitor: &mut V) {
                match self { $(Self::$name(model) => model.visit_trained(part, visitor),)* }
            }

            pub(super) fn map_trained<M: ModuleMapper>(self, part: TrainedPart, mapper: &mut M) -> Self {
                match self { $(Self::$name(model) => Self::$name(model.map_trained(part, mapper)),)* }
            }
        }
    };
}

// The table: one line per base model.
base_models! {
    FluxKontext,
    QwenImageEdit,
}

impl Base {
    /// The base model of a pipeline of class `class`.
    pub(super) fn load(class: &str, files: Files<'_>) -> Result<Self, LoadError> {
        Self::load_class(class, files).unwrap_or_else(|| Err(unsupported(class, files.folder)))
    }

    /// The outline of a pipeline of class `class`.
    pub(super) fn outline(
        class: &str,
        folder: &Path,
        assumed: &Assumed<'_>,
    ) -> Result<Outline, LoadError> {
        Self::outline_class(class, folder, assumed)
            .unwrap_or_else(|| Err(unsupported(class, folder)))
    }

    /// As [`Base::load`], with a random transformer.
    pub(super) fn random(
        class: &str,
        files: Files<'_>,
        text: TextStart,
        init: &Init,
    ) -> Result<Self, LoadError> {
        Self::random_class(class, files, text, init)
            .unwrap_or_else(|| Err(unsupported(class, files.folder)))
    }

    /// Whether so many source images can be edited.
    pub(super) fn check_sources(&self, sources: &[RgbImage]) -> Result<(), EditError> {
        let (found, sources_max) = (sources.len(), self.sources_max());
        if (1..=sources_max).contains(&found) {
            return Ok(());
        }
        Err(EditError::Sources {
            found,
            class: self.class(),
            sources_max,
        })
    }
}

fn unsupported(class: &str, folder: &Path) -> LoadError {
    let classes = Base::CLASSES.join(", ");
    LoadError::format(
        &folder.join(super::folder::INDEX_FILE),
        format!("_class_name = {class} is not supported; supported: {classes}"),
    )
}
