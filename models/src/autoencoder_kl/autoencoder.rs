use burn::module::Module;
use burn::tensor::{DType, Tensor};

use super::AutoencoderKlConfig;
use super::decoder::Decoder;
use super::encoder::Encoder;
use crate::init::Init;
use crate::layers::Conv2d;
use crate::weights::{DIFFUSERS_FILE, Names, Pretrained};

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

impl Pretrained for AutoencoderKl {
    type Config = AutoencoderKlConfig;

    const FILE: &'static str = DIFFUSERS_FILE;

    fn init(config: &AutoencoderKlConfig, init: &Init) -> Self {
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

    fn config(&self) -> &AutoencoderKlConfig {
        &self.config
    }

    fn names(_config: &AutoencoderKlConfig) -> Names {
        NAMES
    }
}

impl AutoencoderKl {
    /// Mean and log-variance of the latents, before shift and scale.
    ///
    /// # Shapes
    /// * pixels in -1..1, f32: `[B, 3, H, W]`
    /// * output, f32: `[B, 2C, h, w]`
    pub fn encode(&self, pixels: Tensor<4>) -> Tensor<4> {
        let moments = self.encoder.forward(pixels.cast(self.encoder.dtype()));
        let moments = match &self.quant_conv {
            Some(conv) => conv.forward(moments),
            None => moments,
        };
        moments.cast(DType::F32)
    }

    /// The image of latents without shift and scale.
    ///
    /// # Shapes
    /// * latents, f32: `[B, C, h, w]`
    /// * output, about -1..1, f32: `[B, 3, H, W]`
    pub fn decode(&self, latents: Tensor<4>) -> Tensor<4> {
        let latents = latents.cast(self.decoder.dtype());
        let pixels = match &self.post_quant_conv {
            Some(conv) => self.decoder.forward(conv.forward(latents)),
            None => self.decoder.forward(latents),
        };
        pixels.cast(DType::F32)
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
