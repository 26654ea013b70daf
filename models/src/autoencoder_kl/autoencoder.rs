use std::path::Path;

use burn::module::Module;
use burn::tensor::{DType, Device, Tensor};

use super::AutoencoderKlConfig;
use super::decoder::Decoder;
use super::encoder::Encoder;
use crate::init::Init;
use crate::layers::Conv2d;
use crate::weights::{DIFFUSERS_FILE, LoadError, Names, Table, Weights, save_folder};

const NAMES: Names = Names {
    prefix: "",
    rename: &[("to_out", "to_out.0")],
    ignored: &[],
};

/// Encodes images into latents of a fraction of their resolution, and decodes them.
#[derive(Module, Debug)]
pub struct AutoencoderKl {
    encoder: Encoder,
    decoder: Decoder,
    quant_conv: Option<Conv2d>,
    post_quant_conv: Option<Conv2d>,
    #[module(skip)]
    config: AutoencoderKlConfig,
}

impl AutoencoderKl {
    /// A new model; its parameters are trainable.
    pub fn init(config: &AutoencoderKlConfig, init: &Init) -> Self {
        let (moments, latent) = (2 * config.latent_channels, config.latent_channels);
        let conv = |channels| Conv2d::init_same([channels, channels], 1, init);
        Self {
            encoder: Encoder::init(config, init),
            decoder: Decoder::init(config, init),
            quant_conv: config.use_quant_conv.then(|| conv(moments)),
            post_quant_conv: config.use_post_quant_conv.then(|| conv(latent)),
            config: config.clone(),
        }
    }

    /// The model of a diffusers folder, in f32.
    ///
    /// # Errors
    /// If its files can't be read or do not fit each other.
    pub fn load(folder: &Path, device: &Device) -> Result<Self, LoadError> {
        let config = AutoencoderKlConfig::load(folder)?;
        Self::from_weights(&config, &Weights::from_folder(folder)?, device, DType::F32)
    }

    /// Names and shapes of the tensors of a model of this configuration.
    pub fn table(config: &AutoencoderKlConfig) -> Table {
        Table::of(&Self::init(config, &Init::unused()), &NAMES)
    }

    /// A model of the given weights.
    ///
    /// # Errors
    /// If they do not fit the configuration.
    pub fn from_weights(
        config: &AutoencoderKlConfig,
        weights: &Weights,
        device: &Device,
        dtype: DType,
    ) -> Result<Self, LoadError> {
        weights.load_as(Self::init(config, &Init::new(0, device)), &NAMES, dtype)
    }

    /// Saves the model as a diffusers folder.
    ///
    /// # Errors
    /// If the folder can't be written.
    pub fn save(&self, folder: &Path) -> Result<(), LoadError> {
        save_folder(folder, &self.config, self, &NAMES, DIFFUSERS_FILE)
    }

    /// The configuration that it was built from.
    pub fn config(&self) -> &AutoencoderKlConfig {
        &self.config
    }

    /// Mean and log-variance of the latents, before shift and scale.
    ///
    /// # Shapes
    /// * pixels in -1..1: `[B, 3, H, W]`
    /// * output: `[B, 2C, h, w]`
    pub fn encode(&self, pixels: Tensor<4>) -> Tensor<4> {
        let moments = self.encoder.forward(pixels);
        match &self.quant_conv {
            Some(conv) => conv.forward(moments),
            None => moments,
        }
    }

    /// The image of latents without shift and scale.
    ///
    /// # Shapes
    /// * latents: `[B, C, h, w]`
    /// * output, about -1..1: `[B, 3, H, W]`
    pub fn decode(&self, latents: Tensor<4>) -> Tensor<4> {
        match &self.post_quant_conv {
            Some(conv) => self.decoder.forward(conv.forward(latents)),
            None => self.decoder.forward(latents),
        }
    }

    /// The most likely latents of images, shifted and scaled as diffusion models see them.
    ///
    /// # Shapes
    /// * pixels in -1..1: `[B, 3, H, W]`
    /// * output: `[B, C, h, w]`
    pub fn encode_scaled(&self, pixels: Tensor<4>) -> Tensor<4> {
        let mean = self
            .encode(pixels)
            .narrow(1, 0, self.config.latent_channels);
        (mean - self.shift()) * self.config.scaling_factor
    }

    /// The images of latents as diffusion models see them.
    ///
    /// # Shapes
    /// * latents: `[B, C, h, w]`
    /// * output, about -1..1: `[B, 3, H, W]`
    pub fn decode_scaled(&self, latents: Tensor<4>) -> Tensor<4> {
        self.decode(latents / self.config.scaling_factor + self.shift())
    }

    fn shift(&self) -> f64 {
        self.config.shift_factor.unwrap_or(0.0)
    }
}
