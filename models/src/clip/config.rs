use serde::{Deserialize, Serialize};

use crate::weights::PretrainedConfig;

/// The published configuration; a missing field has transformers' default.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "model_type", rename = "clip_text_model", default)]
pub struct ClipTextConfig {
    /// Number of tokens.
    pub vocab_size: usize,
    /// Width D of the hidden states.
    pub hidden_size: usize,
    /// Width inside the feed-forward layers.
    pub intermediate_size: usize,
    /// Number of layers.
    pub num_hidden_layers: usize,
    /// Number of heads.
    pub num_attention_heads: usize,
    /// Longest sequence.
    pub max_position_embeddings: usize,
    /// Activation of the feed-forward layers.
    pub hidden_act: HiddenAct,
    /// Added to variances.
    pub layer_norm_eps: f64,
    /// The token that the pooled output is read at. 2, an old mistake in published files, stands
    /// for the largest token.
    pub eos_token_id: Option<i64>,
}

/// The published activations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HiddenAct {
    /// x sigmoid(1.702 x)
    QuickGelu,
    /// With the error function.
    Gelu,
}

impl Default for ClipTextConfig {
    fn default() -> Self {
        Self {
            vocab_size: 49408,
            hidden_size: 512,
            intermediate_size: 2048,
            num_hidden_layers: 12,
            num_attention_heads: 8,
            max_position_embeddings: 77,
            hidden_act: HiddenAct::QuickGelu,
            layer_norm_eps: 1e-5,
            eos_token_id: None,
        }
    }
}

impl ClipTextConfig {
    /// Where a row of tokens is pooled.
    pub(super) fn pooled_position(&self, ids: &[i64]) -> usize {
        const LEGACY: i64 = 2;
        const DEFAULT: i64 = 49407;
        let eos = match self.eos_token_id.unwrap_or(DEFAULT) {
            LEGACY => ids.iter().copied().max().unwrap_or_default(),
            eos => eos,
        };
        ids.iter().position(|id| *id == eos).unwrap_or(0)
    }
}

impl PretrainedConfig for ClipTextConfig {
    const CLASS: &'static str = "CLIPTextModel";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_end_token_or_by_old_files_the_first_largest_is_pooled() {
        let mut config = ClipTextConfig {
            eos_token_id: Some(7),
            ..Default::default()
        };
        assert_eq!(config.pooled_position(&[1, 9, 7, 7]), 2);
        assert_eq!(config.pooled_position(&[1, 9, 8]), 0);
        config.eos_token_id = Some(2);
        assert_eq!(config.pooled_position(&[1, 9, 2, 9]), 1);
    }
}
