use std::path::Path;

use super::base::Loader;
use super::{ImageSize, LatentFormat};
use crate::lora::{LoraConfig, Projection};
use crate::weights::{LoadError, Table};
use crate::work::{Tokens, Work};

/// What the configurations of a pipeline folder say of it: sizes, and the work of one edit. Nothing of a model's size
/// is made.
#[derive(Debug, Clone)]
pub(crate) struct Outline {
    /// What predicts velocities.
    pub(crate) transformer: Network,
    /// What encodes prompts.
    pub(crate) text_encoders: Vec<Network>,
    /// What encodes and decodes images.
    pub(crate) vae: Network,
    /// Width of the transformer's hidden states.
    pub(crate) hidden: usize,
    /// Its blocks with weights of their own for image and text.
    pub(crate) double_blocks: usize,
    /// Its blocks with one set of weights for all tokens.
    pub(crate) single_blocks: usize,
    /// The layers that an adapter may change.
    pub(crate) projections: Vec<Projection>,
    /// Channels per pixel that decoding is measured in, see `inspect`.
    pub(crate) decoded_channels: usize,
    /// The transformer's tokens of one sample.
    pub(crate) tokens: Tokens,
    /// One velocity of one sample, without adapter.
    pub(crate) velocity: Work,
    /// What an adapter beside the weights adds to that.
    pub(crate) adapter: Work,
    /// One prompt.
    pub(crate) prompt: Work,
    /// The source images.
    pub(crate) encoding: Work,
    /// One edited image.
    pub(crate) decoding: Work,
}

/// A part with weights.
#[derive(Debug, Clone)]
pub(crate) struct Network {
    /// Its folder.
    pub(crate) name: &'static str,
    /// Its tensors.
    pub(crate) table: Table,
}

/// One edit, of which the work is told.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Assumed<'a> {
    /// Size of the result and of each source.
    pub(crate) size: ImageSize,
    /// Source images.
    pub(crate) sources: usize,
    /// Tokens of the instruction.
    pub(crate) prompt_tokens: usize,
    /// The adapter.
    pub(crate) lora: &'a LoraConfig,
}

impl Outline {
    /// The outline of a pipeline of class `class`.
    ///
    /// # Errors
    /// If a configuration can't be read, the parts do not fit each other, or the pipeline is another one.
    pub(crate) fn read(
        class: &str,
        folder: &Path,
        assumed: &Assumed<'_>,
    ) -> Result<Self, LoadError> {
        (Loader::find(class, folder)?.outline)(folder, assumed)
    }
}

impl Assumed<'_> {
    pub(super) fn pixels(&self) -> u64 {
        (self.size.height * self.size.width) as u64
    }

    /// Tokens of the result and its sources, and the given number of text tokens.
    pub(super) fn tokens(&self, format: LatentFormat, text: usize) -> Tokens {
        let [image, _] = format.shape(self.size);
        Tokens {
            image: ((1 + self.sources) * image) as u64,
            text: text as u64,
        }
    }

    /// What the adapter's factors take, each applied at `places` of its layer's name.
    pub(super) fn adapter(&self, projections: &[Projection], places: impl Fn(&str) -> u64) -> Work {
        let targeted = projections.iter().filter(|p| self.lora.targets(&p.name));
        let factors = |p: &Projection| (self.lora.rank * (p.in_features + p.out_features)) as u64;
        Work::from(targeted.map(|p| places(&p.name) * factors(p)).sum::<u64>())
    }
}
