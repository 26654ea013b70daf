use burn::module::Module;
use burn::tensor::{DType, Tensor};

use super::AutoencoderKlConfig;
use super::mid_block::MidBlock;
use super::resnet::{EPS, ResnetBlock};
use crate::init::Init;
use crate::layers::{Conv2d, GroupNorm};

/// From pixels to the mean and log-variance of the latents.
#[derive(Module, Debug)]
pub(super) struct Encoder {
    conv_in: Conv2d,
    down_blocks: Vec<DownBlock>,
    mid_block: MidBlock,
    conv_norm_out: GroupNorm,
    conv_out: Conv2d,
}

/// A level: residual blocks, and a halving unless it is the last.
#[derive(Module, Debug)]
struct DownBlock {
    resnets: Vec<ResnetBlock>,
    downsamplers: Vec<Downsampler>,
}

/// Halves the resolution; the padding is on the right and at the bottom only.
#[derive(Module, Debug)]
struct Downsampler {
    conv: Conv2d,
}

impl Encoder {
    pub(super) fn init(config: &AutoencoderKlConfig, init: &Init) -> Self {
        let levels = &config.block_out_channels;
        let down_blocks = (0..levels.len()).map(|level| DownBlock::init(config, level, init));
        let (first, lowest) = (levels[0], config.lowest_channels());
        Self {
            conv_in: Conv2d::init_same([config.in_channels, first], 3, init),
            down_blocks: down_blocks.collect(),
            mid_block: MidBlock::init(config, init),
            conv_norm_out: GroupNorm::init(config.norm_num_groups, lowest, EPS, init),
            conv_out: Conv2d::init_same([lowest, 2 * config.latent_channels], 3, init),
        }
    }

    /// The float type that it computes in.
    pub(super) fn dtype(&self) -> DType {
        self.conv_in.weight.val().dtype()
    }

    /// # Shapes
    /// * pixels: `[B, 3, H, W]`
    /// * output: `[B, 2C, h, w]`
    pub(super) fn forward(&self, pixels: Tensor<4>) -> Tensor<4> {
        let x = self.conv_in.forward(pixels);
        let x = self.down_blocks.iter().fold(x, |x, block| block.forward(x));
        let x = self.mid_block.forward(x);
        self.conv_out.forward(self.conv_norm_out.forward_silu(x))
    }
}

impl DownBlock {
    fn init(config: &AutoencoderKlConfig, level: usize, init: &Init) -> Self {
        let levels = &config.block_out_channels;
        let (from, to) = (levels[level.saturating_sub(1)], levels[level]);
        let resnet = |i| ResnetBlock::init([if i == 0 { from } else { to }, to], config, init);
        let downsamplers = usize::from(level + 1 < levels.len());
        Self {
            resnets: (0..config.layers_per_block).map(resnet).collect(),
            downsamplers: (0..downsamplers)
                .map(|_| Downsampler::init(to, init))
                .collect(),
        }
    }

    /// # Shapes
    /// * x: `[B, from, H, W]`
    /// * output: `[B, to, H / 2, W / 2]`, or of full size in the last level
    fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let x = self.resnets.iter().fold(x, |x, resnet| resnet.forward(x));
        self.downsamplers
            .iter()
            .fold(x, |x, down| down.conv.forward(x))
    }
}

impl Downsampler {
    fn init(channels: usize, init: &Init) -> Self {
        Self {
            conv: Conv2d::init([channels, channels], 3, 2, [0, 0, 1, 1], init),
        }
    }
}
