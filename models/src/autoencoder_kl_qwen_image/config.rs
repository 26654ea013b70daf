use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::weights::{LoadError, PretrainedConfig};

/// The published configuration; a missing field has diffusers' default.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "_class_name", rename = "AutoencoderKLQwenImage", default)]
pub struct AutoencoderKlQwenImageConfig {
    /// Channels that `dim_mult` counts in.
    pub base_dim: usize,
    /// Channels C of a latent.
    pub z_dim: usize,
    /// Channels of each level; every level but the last halves the resolution.
    pub dim_mult: Vec<usize>,
    /// Residual blocks per level of the encoder; the decoder has one more.
    pub num_res_blocks: usize,
    /// Levels of the encoder with attention; none.
    pub attn_scales: Vec<f64>,
    /// Which halvings halve time too.
    pub temperal_downsample: Vec<bool>,
    /// Channels of an image.
    pub input_channels: usize,
    /// Mean of each channel of latents; diffusion models see them without it.
    pub latents_mean: Vec<f64>,
    /// Standard deviation of each channel of latents; diffusion models see them divided by it.
    pub latents_std: Vec<f64>,
}

impl Default for AutoencoderKlQwenImageConfig {
    fn default() -> Self {
        Self {
            base_dim: 96,
            z_dim: 16,
            dim_mult: vec![1, 2, 4, 4],
            num_res_blocks: 2,
            attn_scales: Vec::new(),
            temperal_downsample: vec![false, true, true],
            input_channels: 3,
            latents_mean: vec![
                -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508, 0.4134,
                -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921,
            ],
            latents_std: vec![
                2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743, 3.2687, 2.1526,
                2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160,
            ],
        }
    }
}

impl AutoencoderKlQwenImageConfig {
    /// Side of the pixel square that one latent stands for.
    pub fn scale_factor(&self) -> usize {
        1 << self.temperal_downsample.len()
    }

    /// Channels of each level, the highest resolution first.
    pub(super) fn levels(&self) -> Vec<usize> {
        self.dim_mult
            .iter()
            .map(|mult| mult * self.base_dim)
            .collect()
    }

    /// Channels that the last doubling of the decoder starts from.
    pub(crate) fn decoded_channels(&self) -> usize {
        let levels = self.levels();
        levels.get(1).or(levels.first()).copied().unwrap_or(0)
    }
}

impl PretrainedConfig for AutoencoderKlQwenImageConfig {
    const CLASS: &'static str = "AutoencoderKLQwenImage";

    fn check(&self, path: &Path) -> Result<(), LoadError> {
        let unsupported = |field, value: String, supported| {
            Err(LoadError::unsupported(path, field, value, supported))
        };
        if self.dim_mult.is_empty() {
            return unsupported("dim_mult", "[]".to_owned(), "one number or more");
        }
        if !self.attn_scales.is_empty() {
            let scales = format!("{:?}", self.attn_scales);
            return unsupported("attn_scales", scales, "[]");
        }
        if self.temperal_downsample.len() + 1 != self.dim_mult.len() {
            let halvings = format!("{:?}", self.temperal_downsample);
            let supported = "one entry less than dim_mult has";
            return unsupported("temperal_downsample", halvings, supported);
        }
        let statistics = [
            ("latents_mean", &self.latents_mean),
            ("latents_std", &self.latents_std),
        ];
        match statistics
            .into_iter()
            .find(|(_, values)| values.len() != self.z_dim)
        {
            None => Ok(()),
            Some((field, values)) => unsupported(field, format!("{values:?}"), "z_dim numbers"),
        }
    }
}
