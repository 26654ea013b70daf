use burn::module::Module;
use burn::tensor::{DType, Tensor};

use super::AutoencoderKlQwenImageConfig;
use super::causal_conv::CausalConv3d;
use super::mid_block::MidBlock;
use super::norm::ChannelNorm;
use super::resample::{Axes, Resample};
use super::resnet::ResidualBlock;
use crate::init::Init;

/// From pixels to the moments of latents.
#[derive(Module, Debug)]
pub(super) struct Encoder {
    conv_in: CausalConv3d,
    down_blocks: Vec<DownLayer>,
    mid_block: MidBlock,
    norm_out: ChannelNorm<4>,
    conv_out: CausalConv3d,
}

/// The reference numbers the layers of all levels in one list.
#[derive(Module, Debug)]
#[allow(clippy::large_enum_variant, reason = "a model has about ten")]
enum DownLayer {
    Resnet(ResidualBlock),
    Downsample(Resample),
}

impl Encoder {
    pub(super) fn init(config: &AutoencoderKlQwenImageConfig, init: &Init) -> Self {
        let levels = config.levels();
        let conv_in = CausalConv3d::init([config.input_channels, config.base_dim], 3, init);
        let (mut down_blocks, mut from) = (Vec::new(), config.base_dim);
        for (level, &to) in levels.iter().enumerate() {
            for _ in 0..config.num_res_blocks {
                down_blocks.push(DownLayer::Resnet(ResidualBlock::init([from, to], init)));
                from = to;
            }
            if let Some(&temporal) = config.temperal_downsample.get(level) {
                let down = Resample::init_down(to, Axes::of(temporal), init);
                down_blocks.push(DownLayer::Downsample(down));
            }
        }
        let moments = 2 * config.z_dim;
        Self {
            conv_in,
            down_blocks,
            mid_block: MidBlock::init(from, init),
            norm_out: ChannelNorm::init(from, init),
            conv_out: CausalConv3d::init([from, moments], 3, init),
        }
    }

    /// The float type that it computes in.
    pub(super) fn dtype(&self) -> DType {
        self.conv_in.dtype()
    }

    /// # Shapes
    /// * pixels: `[B, 3, H, W]`
    /// * output: `[B, 2C, h, w]`
    pub(super) fn forward(&self, pixels: Tensor<4>) -> Tensor<4> {
        let x = self.conv_in.forward(pixels);
        let x = self.down_blocks.iter().fold(x, |x, layer| match layer {
            DownLayer::Resnet(resnet) => resnet.forward(x),
            DownLayer::Downsample(resample) => resample.down(x),
        });
        let x = self.mid_block.forward(x);
        self.conv_out.forward(self.norm_out.forward_silu(x))
    }
}
