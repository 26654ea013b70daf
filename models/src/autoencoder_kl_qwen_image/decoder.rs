use burn::module::Module;
use burn::tensor::{DType, Tensor};

use super::AutoencoderKlQwenImageConfig;
use super::causal_conv::CausalConv3d;
use super::mid_block::MidBlock;
use super::norm::ChannelNorm;
use super::resample::{Axes, Resample};
use super::resnet::ResidualBlock;
use crate::init::Init;

/// From latents to pixels.
#[derive(Module, Debug)]
pub(super) struct Decoder {
    conv_in: CausalConv3d,
    mid_block: MidBlock,
    up_blocks: Vec<UpBlock>,
    norm_out: ChannelNorm<4>,
    conv_out: CausalConv3d,
}

/// A level, the lowest first: residual blocks, and a doubling unless it is the last.
#[derive(Module, Debug)]
struct UpBlock {
    resnets: Vec<ResidualBlock>,
    upsamplers: Vec<Resample>,
}

impl Decoder {
    pub(super) fn init(config: &AutoencoderKlQwenImageConfig, init: &Init) -> Self {
        let mut levels = config.levels();
        levels.reverse();
        let (lowest, highest) = (levels[0], levels[levels.len() - 1]);
        let up_blocks = (0..levels.len()).map(|level| UpBlock::init(config, &levels, level, init));
        Self {
            conv_in: CausalConv3d::init([config.z_dim, lowest], 3, init),
            mid_block: MidBlock::init(lowest, init),
            up_blocks: up_blocks.collect(),
            norm_out: ChannelNorm::init(highest, init),
            conv_out: CausalConv3d::init([highest, config.input_channels], 3, init),
        }
    }

    /// The float type that it computes in.
    pub(super) fn dtype(&self) -> DType {
        self.conv_in.dtype()
    }

    /// # Shapes
    /// * latents: `[B, C, h, w]`
    /// * output: `[B, 3, H, W]`
    pub(super) fn forward(&self, latents: Tensor<4>) -> Tensor<4> {
        let x = self.mid_block.forward(self.conv_in.forward(latents));
        let x = self.up_blocks.iter().fold(x, |x, block| block.forward(x));
        self.conv_out.forward(self.norm_out.forward_silu(x))
    }
}

impl UpBlock {
    /// The block of one of the `levels`, the lowest first. Each doubling halves the channels.
    fn init(
        config: &AutoencoderKlQwenImageConfig,
        levels: &[usize],
        level: usize,
        init: &Init,
    ) -> Self {
        let to = levels[level];
        let from = match level {
            0 => levels[0],
            _ => levels[level - 1] / 2,
        };
        let resnet = |i| ResidualBlock::init([if i == 0 { from } else { to }, to], init);
        let temporal = config.temperal_downsample.iter().rev().nth(level);
        let up = |temporal: &bool| Resample::init_up(to, Axes::of(*temporal), init);
        Self {
            resnets: (0..config.num_res_blocks + 1).map(resnet).collect(),
            upsamplers: temporal.map(up).into_iter().collect(),
        }
    }

    /// # Shapes
    /// * x: `[B, from, h, w]`
    /// * output: `[B, to / 2, 2h, 2w]`, or `[B, to, h, w]` in the last level
    fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let x = self.resnets.iter().fold(x, |x, resnet| resnet.forward(x));
        self.upsamplers.iter().fold(x, |x, up| up.up(x))
    }
}
