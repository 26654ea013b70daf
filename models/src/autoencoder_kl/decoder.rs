use burn::module::Module;
use burn::tensor::{DType, Tensor};

use super::AutoencoderKlConfig;
use super::mid_block::MidBlock;
use super::resnet::{EPS, ResnetBlock};
use crate::init::Init;
use crate::layers::{Conv2d, GroupNorm};

/// From latents to pixels.
#[derive(Module, Debug)]
pub(super) struct Decoder {
    conv_in: Conv2d,
    mid_block: MidBlock,
    up_blocks: Vec<UpBlock>,
    conv_norm_out: GroupNorm,
    conv_out: Conv2d,
}

/// A level, the lowest first: residual blocks, and a doubling unless it is the last.
#[derive(Module, Debug)]
struct UpBlock {
    resnets: Vec<ResnetBlock>,
    upsamplers: Vec<Upsampler>,
}

/// Doubles the resolution by repeating pixels, then smooths.
#[derive(Module, Debug)]
struct Upsampler {
    conv: Conv2d,
}

impl Decoder {
    pub(super) fn init(config: &AutoencoderKlConfig, init: &Init) -> Self {
        let levels = &config.block_out_channels;
        let up_blocks = (0..levels.len()).map(|level| UpBlock::init(config, level, init));
        let (first, lowest) = (levels[0], config.lowest_channels());
        Self {
            conv_in: Conv2d::init_same([config.latent_channels, lowest], 3, init),
            mid_block: MidBlock::init(config, init),
            up_blocks: up_blocks.collect(),
            conv_norm_out: GroupNorm::init(config.norm_num_groups, first, EPS, init),
            conv_out: Conv2d::init_same([first, config.out_channels], 3, init),
        }
    }

    /// The float type that it computes in.
    pub(super) fn dtype(&self) -> DType {
        self.conv_in.weight.val().dtype()
    }

    /// # Shapes
    /// * latents: `[B, C, h, w]`
    /// * output: `[B, 3, H, W]`
    pub(super) fn forward(&self, latents: Tensor<4>) -> Tensor<4> {
        let x = self.mid_block.forward(self.conv_in.forward(latents));
        let x = self.up_blocks.iter().fold(x, |x, block| block.forward(x));
        self.conv_out.forward(self.conv_norm_out.forward_silu(x))
    }
}

impl UpBlock {
    fn init(config: &AutoencoderKlConfig, level: usize, init: &Init) -> Self {
        let upwards: Vec<usize> = config.block_out_channels.iter().rev().copied().collect();
        let (from, to) = (upwards[level.saturating_sub(1)], upwards[level]);
        let resnet = |i| ResnetBlock::init([if i == 0 { from } else { to }, to], config, init);
        let upsamplers = usize::from(level + 1 < upwards.len());
        Self {
            resnets: (0..config.layers_per_block + 1).map(resnet).collect(),
            upsamplers: (0..upsamplers).map(|_| Upsampler::init(to, init)).collect(),
        }
    }

    /// # Shapes
    /// * x: `[B, from, h, w]`
    /// * output: `[B, to, 2h, 2w]`, or of the same size in the last level
    fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let x = self.resnets.iter().fold(x, |x, resnet| resnet.forward(x));
        self.upsamplers.iter().fold(x, |x, up| up.forward(x))
    }
}

impl Upsampler {
    fn init(channels: usize, init: &Init) -> Self {
        Self {
            conv: Conv2d::init_same([channels, channels], 3, init),
        }
    }

    /// # Shapes
    /// * x: `[B, C, h, w]`
    /// * output: `[B, C, 2h, 2w]`
    fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let [batch, channels, height, width] = x.dims();
        let x = x
            .reshape([batch, channels, height, 1, width, 1])
            .expand([batch, channels, height, 2, width, 2]);
        self.conv
            .forward(x.reshape([batch, channels, 2 * height, 2 * width]))
    }
}
