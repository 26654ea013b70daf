use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::weights::{LoadError, PretrainedConfig};

/// The published configuration; a missing field has diffusers' default.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "_class_name", rename = "FluxTransformer2DModel", default)]
pub struct FluxTransformerConfig {
    /// Side of the patches that the model itself unfolds; latents come packed, so this is 1.
    pub patch_size: usize,
    /// Width C of a packed latent token.
    pub in_channels: usize,
    /// Width of an output token; `in_channels` if absent.
    pub out_channels: Option<usize>,
    /// Number of double-stream blocks.
    pub num_layers: usize,
    /// Number of single-stream blocks.
    pub num_single_layers: usize,
    /// Width of a head.
    pub attention_head_dim: usize,
    /// Number of heads.
    pub num_attention_heads: usize,
    /// Width J of a text token.
    pub joint_attention_dim: usize,
    /// Width P of the pooled text embedding.
    pub pooled_projection_dim: usize,
    /// Whether the model was distilled to take the guidance scale as an input.
    pub guidance_embeds: bool,
    /// Dimensions of a head that each position axis rotates; they add up to the head.
    pub axes_dims_rope: Vec<usize>,
}

impl Default for FluxTransformerConfig {
    fn default() -> Self {
        Self {
            patch_size: 1,
            in_channels: 64,
            out_channels: None,
            num_layers: 19,
            num_single_layers: 38,
            attention_head_dim: 128,
            num_attention_heads: 24,
            joint_attention_dim: 4096,
            pooled_projection_dim: 768,
            guidance_embeds: false,
            axes_dims_rope: vec![16, 56, 56],
        }
    }
}

impl FluxTransformerConfig {
    /// Width D of the hidden states.
    pub fn inner_dim(&self) -> usize {
        self.num_attention_heads * self.attention_head_dim
    }

    /// Width of an output token.
    pub fn out_features(&self) -> usize {
        self.patch_size * self.patch_size * self.out_channels.unwrap_or(self.in_channels)
    }

    fn rotates_whole_heads(&self) -> bool {
        self.axes_dims_rope.iter().sum::<usize>() == self.attention_head_dim
    }
}

impl PretrainedConfig for FluxTransformerConfig {
    const CLASS: &'static str = "FluxTransformer2DModel";

    fn check(&self, path: &Path) -> Result<(), LoadError> {
        if self.rotates_whole_heads() {
            return Ok(());
        }
        let axes = format!("{:?}", self.axes_dims_rope);
        let supported = "dimensions that add up to attention_head_dim";
        Err(LoadError::unsupported(
            path,
            "axes_dims_rope",
            axes,
            supported,
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn published_fields_and_defaults_are_read_and_the_class_is_written() {
        let text = r#"{"_class_name": "FluxTransformer2DModel", "_diffusers_version": "0.30",
                       "guidance_embeds": true, "num_layers": 2}"#;
        let config: FluxTransformerConfig = serde_json::from_str(text).unwrap();
        assert!(config.guidance_embeds && config.num_layers == 2);
        assert_eq!((config.inner_dim(), config.out_features()), (3072, 64));
        let value = serde_json::to_value(&config).unwrap();
        assert_eq!(value["_class_name"], "FluxTransformer2DModel");
        assert_eq!(
            serde_json::from_value::<FluxTransformerConfig>(value).unwrap(),
            config
        );
    }
}
