use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::weights::{LoadError, PretrainedConfig};

const GATED_GELU: &str = "gated-gelu";

/// The published configuration; a missing field has transformers' default.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "model_type", rename = "t5", default)]
pub struct T5Config {
    /// Number of tokens.
    pub vocab_size: usize,
    /// Width D of the hidden states.
    pub d_model: usize,
    /// Width of a head.
    pub d_kv: usize,
    /// Width inside the feed-forward layers.
    pub d_ff: usize,
    /// Number of layers.
    pub num_layers: usize,
    /// Number of heads.
    pub num_heads: usize,
    /// Number of distance classes in the position bias.
    pub relative_attention_num_buckets: usize,
    /// Distance from which on all are one class.
    pub relative_attention_max_distance: usize,
    /// Added to mean squares.
    pub layer_norm_epsilon: f64,
    /// Kind of the feed-forward layers; `gated-gelu`.
    pub feed_forward_proj: String,
}

impl Default for T5Config {
    fn default() -> Self {
        Self {
            vocab_size: 32128,
            d_model: 512,
            d_kv: 64,
            d_ff: 2048,
            num_layers: 6,
            num_heads: 8,
            relative_attention_num_buckets: 32,
            relative_attention_max_distance: 128,
            layer_norm_epsilon: 1e-6,
            feed_forward_proj: GATED_GELU.to_owned(),
        }
    }
}

impl PretrainedConfig for T5Config {
    const CLASS: &'static str = "T5EncoderModel";

    fn check(&self, path: &Path) -> Result<(), LoadError> {
        if self.feed_forward_proj == GATED_GELU {
            return Ok(());
        }
        let found = &self.feed_forward_proj;
        Err(LoadError::unsupported(
            path,
            "feed_forward_proj",
            found,
            GATED_GELU,
        ))
    }
}
