use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::weights::{LoadError, PretrainedConfig};

/// The published configuration; a missing field has diffusers' default.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "_class_name", rename = "QwenImageTransformer2DModel", default)]
pub struct QwenImageTransformerConfig {
    /// Side of the squares of latents that an output token stands for.
    pub patch_size: usize,
    /// Width C of a packed latent token.
    pub in_channels: usize,
    /// Channels of the latents that are predicted; `in_channels` if null.
    pub out_channels: Option<usize>,
    /// Number of double-stream blocks.
    pub num_layers: usize,
    /// Width of a head.
    pub attention_head_dim: usize,
    /// Number of heads.
    pub num_attention_heads: usize,
    /// Width J of a text token.
    pub joint_attention_dim: usize,
    /// Dimensions of a head that each position axis rotates; they are even and add up to the head.
    pub axes_dims_rope: [usize; 3],
    /// A guidance scale as an input; not supported.
    pub guidance_embeds: bool,
    /// Sources modulated as at time zero (later releases); not supported.
    pub zero_cond_t: bool,
    /// A second conditioning beside time (layered images); not supported.
    pub use_additional_t_cond: bool,
    /// Positions of layered images; not supported.
    pub use_layer3d_rope: bool,
}

impl Default for QwenImageTransformerConfig {
    fn default() -> Self {
        Self {
            patch_size: 2,
            in_channels: 64,
            out_channels: Some(16),
            num_layers: 60,
            attention_head_dim: 128,
            num_attention_heads: 24,
            joint_attention_dim: 3584,
            axes_dims_rope: [16, 56, 56],
            guidance_embeds: false,
            zero_cond_t: false,
            use_additional_t_cond: false,
            use_layer3d_rope: false,
        }
    }
}

impl QwenImageTransformerConfig {
    /// Width D of the hidden states.
    pub fn inner_dim(&self) -> usize {
        self.num_attention_heads * self.attention_head_dim
    }

    /// Width of an output token.
    pub fn out_features(&self) -> usize {
        self.patch_size * self.patch_size * self.out_channels.unwrap_or(self.in_channels)
    }

    pub(super) fn rotates_whole_heads(&self) -> bool {
        let axes = self.axes_dims_rope;
        axes.iter().sum::<usize>() == self.attention_head_dim
            && axes.iter().all(|dim| dim.is_multiple_of(2))
    }
}

impl PretrainedConfig for QwenImageTransformerConfig {
    const CLASS: &'static str = "QwenImageTransformer2DModel";

    fn check(&self, path: &Path) -> Result<(), LoadError> {
        let unsupported = |field, value: String, supported| {
            Err(LoadError::unsupported(path, field, value, supported))
        };
        let switches = [
            ("guidance_embeds", self.guidance_embeds),
            ("zero_cond_t", self.zero_cond_t),
            ("use_additional_t_cond", self.use_additional_t_cond),
            ("use_layer3d_rope", self.use_layer3d_rope),
        ];
        if let Some((field, _)) = switches.into_iter().find(|(_, on)| *on) {
            return unsupported(field, "true".to_owned(), "false");
        }
        if !self.rotates_whole_heads() {
            let axes = format!("{:?}", self.axes_dims_rope);
            let supported = "even dimensions that add up to attention_head_dim";
            return unsupported("axes_dims_rope", axes, supported);
        }
        Ok(())
    }
}
