use burn::tensor::Tensor;

use super::rotary::Rotary;
use crate::ops::AttentionMask;

/// The patches of one image, a row of the reference's `img_shapes`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageShape {
    /// Frames; 1 for a still image.
    pub frames: usize,
    /// Patches from top to bottom.
    pub height: usize,
    /// Patches from left to right.
    pub width: usize,
}

/// What an edit is conditioned on; a batch of one serves any number of samples.
#[derive(Debug, Clone)]
pub struct QwenImageCondition {
    /// Text tokens, padded at the end: `[B or 1, T, J]`
    pub encoder_hidden_states: Tensor<3>,
    /// Number of real text tokens of each row: B or 1
    pub text_lengths: Vec<usize>,
    /// The images that the image tokens are of, the noised one first; the same for all rows.
    pub img_shapes: Vec<ImageShape>,
}

/// What all steps of one condition share, computed once.
#[derive(Debug, Clone)]
pub struct QwenImageContext {
    /// Embedded text tokens: `[B or 1, T, D]`
    pub(super) context: Tensor<3>,
    pub(super) text_lengths: Vec<usize>,
    pub(super) rotary: Rotary,
}

impl ImageShape {
    /// Tokens of the image.
    pub fn tokens(&self) -> usize {
        self.frames * self.height * self.width
    }
}

impl QwenImageContext {
    /// Hides padding from `batch` rows whose keys are `image` image tokens, then the text tokens.
    pub(super) fn mask(&self, batch: usize, image: usize) -> AttentionMask {
        let [_, text, _] = self.context.dims();
        if self.text_lengths.iter().all(|length| *length == text) {
            return AttentionMask::None;
        }
        let lengths = self.text_lengths.iter().map(|length| image + length);
        AttentionMask::KeyPadding {
            lengths: match self.text_lengths.len() {
                1 => lengths.cycle().take(batch).collect(),
                _ => lengths.collect(),
            },
        }
    }
}
