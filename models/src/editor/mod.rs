//! The edit pipeline: source images and an instruction to edited images.
//!
//! [`Editor`] is all that the rest of the program knows of a policy: it encodes a [`Condition`], predicts velocities
//! under it, samples, and decodes. Behind it is one of the base models, chosen by the `_class_name` of a diffusers
//! pipeline folder from the table in `base`. A base model is a folder here and a line in that table; what base
//! models share is in `base_model`.

mod at_once;
mod base;
mod base_model;
mod condition;
mod error;
mod flux_kontext;
mod folder;
mod latents;
mod layout;
mod merge;
mod outline;
mod pipeline;
mod pixels;
mod prompt;
mod quiet;
mod qwen_image_edit;
mod random;
mod size;
mod source;
mod sources;
#[cfg(test)]
mod tests;

pub use at_once::batches_of_one_shape;
pub(crate) use at_once::{images_at_once, samples_at_once};
pub use base::{Base, TextStart, TrainedPart};
pub(crate) use base::{LOADERS, supported_classes};
pub use base_model::{BaseModel, Encoders, TextWidths};
pub use condition::{Condition, ConditionBatch};
pub use error::EditError;
pub use flux_kontext::{FluxKontext, FluxKontextEncoders};
pub use latents::LatentFormat;
pub use layout::Layout;
pub use merge::merge_pipeline;
pub(crate) use outline::{Assumed, Network, Outline};
pub use pipeline::{
    EditRequest, Editor, EncodedSources, NEGATIVE_PROMPT, Parts, Prepared, SampleOptions,
};
pub use pixels::fit;
pub use prompt::{Prompt, PromptBatch, PromptInput};
pub use qwen_image_edit::{Areas, QwenImageEdit, QwenImageEditEncoders, TextPositions};
pub use random::{ConditionShape, PromptShape};
pub use size::{ImageSize, SizeRule, SourceSize, output_size};
pub use source::{EditorSource, Loaded};
pub use sources::Sources;
