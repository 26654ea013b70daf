//! Conditions of random numbers, for walking through the work without encoders.

use super::{Condition, Editor, ImageSize, Prompt};
use crate::noise;

/// How much an encoded prompt is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PromptShape {
    /// Number T of text tokens.
    pub tokens: usize,
    /// Width J of each.
    pub width: usize,
    /// Width P of the pooled text, where the model takes it.
    pub pooled: Option<usize>,
}

/// What is encoded, but for the content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConditionShape {
    /// Size of the edited images and of their sources.
    pub size: ImageSize,
    /// Source images.
    pub sources: usize,
    /// Text tokens, for base models that pad and cut their text.
    pub max_sequence_length: usize,
}

impl Editor {
    /// How much an instruction of common length is once it is encoded.
    pub fn prompt_shape(&self, shape: ConditionShape) -> PromptShape {
        self.base.prompt_shape(shape)
    }

    /// Gaussians in the shapes of an encoded condition; equal seeds give equal ones.
    pub fn random_condition(&self, shape: ConditionShape, seed: u64) -> Condition {
        let device = self.device().clone().without_autodiff();
        let prompt = self.prompt_shape(shape);
        let [tokens, channels] = self.latent_shape(shape.size);
        // Odd multiplier: distinct seeds give distinct streams.
        let stream = |n: u64| seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ n;
        let pooled = |width| noise::normal(stream(1), [width], &device);
        Condition {
            prompt: Prompt {
                tokens: noise::normal(stream(0), [prompt.tokens, prompt.width], &device),
                pooled: prompt.pooled.map(pooled),
            },
            negative_prompt: None,
            image_latents: noise::normal(stream(2), [shape.sources * tokens, channels], &device),
            size: shape.size,
            source_sizes: vec![shape.size; shape.sources],
        }
    }
}
