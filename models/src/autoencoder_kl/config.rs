use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::weights::{LoadError, PretrainedConfig};

/// The published configuration; a missing field has diffusers' default.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "_class_name", rename = "AutoencoderKL", default)]
pub struct AutoencoderKlConfig {
    /// Channels of an image.
    pub in_channels: usize,
    /// Channels of a decoded image.
    pub out_channels: usize,
    /// Kinds of the encoder's levels; all are `DownEncoderBlock2D`.
    pub down_block_types: Vec<String>,
    /// Kinds of the decoder's levels; all are `UpDecoderBlock2D`.
    pub up_block_types: Vec<String>,
    /// Channels of each level; every level but the last halves the resolution.
    pub block_out_channels: Vec<usize>,
    /// Residual blocks per level of the encoder; the decoder has one more.
    pub layers_per_block: usize,
    /// Activation; `silu`.
    pub act_fn: String,
    /// Channels C of a latent.
    pub latent_channels: usize,
    /// Groups of every group normalisation.
    pub norm_num_groups: usize,
    /// What latents are multiplied by after the shift.
    pub scaling_factor: f64,
    /// What is subtracted from latents; none is 0.
    pub shift_factor: Option<f64>,
    /// Whether a 1 x 1 convolution follows the encoder.
    pub use_quant_conv: bool,
    /// Whether a 1 x 1 convolution precedes the decoder.
    pub use_post_quant_conv: bool,
    /// Whether the lowest level attends.
    pub mid_block_add_attention: bool,
}

impl Default for AutoencoderKlConfig {
    fn default() -> Self {
        Self::with_levels(vec![64])
    }
}

impl AutoencoderKlConfig {
    /// diffusers' defaults with the given channels per level.
    pub fn with_levels(block_out_channels: Vec<usize>) -> Self {
        let levels = block_out_channels.len();
        Self {
            in_channels: 3,
            out_channels: 3,
            down_block_types: vec![DOWN_BLOCK.to_owned(); levels],
            up_block_types: vec![UP_BLOCK.to_owned(); levels],
            block_out_channels,
            layers_per_block: 1,
            act_fn: "silu".to_owned(),
            latent_channels: 4,
            norm_num_groups: 32,
            scaling_factor: 0.18215,
            shift_factor: None,
            use_quant_conv: true,
            use_post_quant_conv: true,
            mid_block_add_attention: true,
        }
    }

    /// Side of the pixel square that one latent stands for.
    pub fn scale_factor(&self) -> usize {
        1 << (self.block_out_channels.len() - 1)
    }

    /// Channels of the lowest level.
    pub(super) fn lowest_channels(&self) -> usize {
        *self.block_out_channels.last().expect("at least one level")
    }
}

impl PretrainedConfig for AutoencoderKlConfig {
    const CLASS: &'static str = "AutoencoderKL";

    fn check(&self, path: &Path) -> Result<(), LoadError> {
        let unsupported = |field, value: &str, supported| {
            Err(LoadError::unsupported(path, field, value, supported))
        };
        if self.block_out_channels.is_empty() {
            return unsupported("block_out_channels", "[]", "one number or more");
        }
        if self.act_fn != "silu" {
            return unsupported("act_fn", &self.act_fn, "silu");
        }
        if let Some(other) = self
            .down_block_types
            .iter()
            .find(|kind| *kind != DOWN_BLOCK)
        {
            return unsupported("down_block_types", other, DOWN_BLOCK);
        }
        if let Some(other) = self.up_block_types.iter().find(|kind| *kind != UP_BLOCK) {
            return unsupported("up_block_types", other, UP_BLOCK);
        }
        Ok(())
    }
}

const DOWN_BLOCK: &str = "DownEncoderBlock2D";
const UP_BLOCK: &str = "UpDecoderBlock2D";
