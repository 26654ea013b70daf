use burn::module::Module;
use burn::tensor::{DType, Device, Tensor, TensorData};

use super::AutoencoderKlQwenImageConfig;
use super::causal_conv::CausalConv3d;
use super::decoder::Decoder;
use super::encoder::Encoder;
use crate::init::Init;
use crate::weights::{DIFFUSERS_FILE, Names, Pretrained};

/// The variants of the encoder's layers are no part of the reference's names.
const NAMES: Names = Names {
    prefix: "",
    rename: &[
        ("Resnet.norm1", "norm1"),
        ("Resnet.conv1", "conv1"),
        ("Resnet.norm2", "norm2"),
        ("Resnet.conv2", "conv2"),
        ("Resnet.conv_shortcut", "conv_shortcut"),
        ("Downsample.resample", "resample"),
        ("Downsample.time_conv", "time_conv"),
        ("resample", "resample.1"),
    ],
    ignored: &[],
};

/// Encodes images into latents of a fraction of their resolution, and decodes them.
#[derive(Module, Debug)]
pub struct AutoencoderKlQwenImage {
    encoder: Encoder,
    quant_conv: CausalConv3d,
    post_quant_conv: CausalConv3d,
    decoder: Decoder,
    #[module(skip)]
    config: AutoencoderKlQwenImageConfig,
}

impl Pretrained for AutoencoderKlQwenImage {
    type Config = AutoencoderKlQwenImageConfig;

    const FILE: &'static str = DIFFUSERS_FILE;

    fn init(config: &AutoencoderKlQwenImageConfig, init: &Init) -> Self {
        let conv = |channels| CausalConv3d::init([channels, channels], 1, init);
        Self {
            encoder: Encoder::init(config, init),
            quant_conv: conv(2 * config.z_dim),
            post_quant_conv: conv(config.z_dim),
            decoder: Decoder::init(config, init),
            config: config.clone(),
        }
    }

    fn config(&self) -> &AutoencoderKlQwenImageConfig {
        &self.config
    }

    fn names(_config: &AutoencoderKlQwenImageConfig) -> Names {
        NAMES
    }
}

impl AutoencoderKlQwenImage {
    /// Mean and log-variance of the latents, before shift and scale.
    ///
    /// # Shapes
    /// * pixels in -1..1, f32: `[B, 3, H, W]`
    /// * output, f32: `[B, 2C, h, w]`
    pub fn encode(&self, pixels: Tensor<4>) -> Tensor<4> {
        let pixels = pixels.cast(self.encoder.dtype());
        let moments = self.quant_conv.forward(self.encoder.forward(pixels));
        moments.cast(DType::F32)
    }

    /// The image of latents without shift and scale.
    ///
    /// # Shapes
    /// * latents, f32: `[B, C, h, w]`
    /// * output in -1..1, f32: `[B, 3, H, W]`
    pub fn decode(&self, latents: Tensor<4>) -> Tensor<4> {
        let latents = latents.cast(self.decoder.dtype());
        let pixels = self.decoder.forward(self.post_quant_conv.forward(latents));
        pixels.cast(DType::F32).clamp(-1.0, 1.0)
    }

    /// The most likely latents of images, normalised per channel as diffusion models see them.
    ///
    /// # Shapes
    /// * pixels in -1..1: `[B, 3, H, W]`
    /// * output: `[B, C, h, w]`
    pub fn encode_scaled(&self, pixels: Tensor<4>) -> Tensor<4> {
        let mode = self.encode(pixels).narrow(1, 0, self.config.z_dim);
        let [mean, std] = self.statistics(&mode.device());
        (mode - mean) / std
    }

    /// The images of latents as diffusion models see them.
    ///
    /// # Shapes
    /// * latents: `[B, C, h, w]`
    /// * output in -1..1: `[B, 3, H, W]`
    pub fn decode_scaled(&self, latents: Tensor<4>) -> Tensor<4> {
        let [mean, std] = self.statistics(&latents.device());
        self.decode(latents * std + mean)
    }

    /// Mean and standard deviation of each channel: `[1, C, 1, 1]` each.
    fn statistics(&self, device: &Device) -> [Tensor<4>; 2] {
        [&self.config.latents_mean, &self.config.latents_std].map(|values| {
            let values: Vec<f32> = values.iter().map(|value| *value as f32).collect();
            let shape = [1, values.len(), 1, 1];
            Tensor::from_data(TensorData::new(values, shape), device)
        })
    }
}
