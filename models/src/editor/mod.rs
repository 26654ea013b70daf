//! The edit pipeline: a source image and an instruction to edited images.
//!
//! FLUX.1-Kontext's layout and conventions, as diffusers' `FluxKontextPipeline` has them: the
//! source image's latent tokens are appended to the noise tokens, told apart by their first
//! position axis. Another base model is one more folder here.

mod condition;
mod encoders;
mod error;
mod folder;
mod latents;
mod pipeline;
mod pixels;
mod size;
#[cfg(test)]
mod tests;

pub use condition::Condition;
pub(crate) use encoders::DECODED_PIXELS_MAX;
pub use encoders::Encoders;
pub use error::EditError;
pub use latents::LatentFormat;
pub use pipeline::{Editor, Parts, Prepared, SampleOptions};
pub use pixels::fit;
pub use size::{ImageSize, SizeRule, SourceSize, output_size};
