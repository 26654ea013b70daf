use burn::module::Module;
use burn::tensor::Tensor;

use super::norm::ChannelNorm;
use crate::init::Init;
use crate::layers::Conv2d;
use crate::ops::{self, AttentionMask};

/// One head of attention over all pixels of the lowest level, with a residual connection.
#[derive(Module, Debug)]
pub(super) struct AttentionBlock {
    norm: ChannelNorm<3>,
    to_qkv: Conv2d,
    proj: Conv2d,
}

impl AttentionBlock {
    pub(super) fn init(channels: usize, init: &Init) -> Self {
        Self {
            norm: ChannelNorm::init(channels, init),
            to_qkv: Conv2d::init_same([channels, 3 * channels], 1, init),
            proj: Conv2d::init_same([channels, channels], 1, init),
        }
    }

    /// # Shapes
    /// * x and output: `[B, C, H, W]`
    pub(super) fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let [batch, channels, height, width] = x.dims();
        let qkv = self.to_qkv.forward(self.norm.forward(x.clone()));
        let qkv = qkv
            .reshape([batch, 1, 3 * channels, height * width])
            .swap_dims(2, 3);
        let part = |index: usize| qkv.clone().narrow(3, index * channels, channels);
        let scale = (channels as f32).sqrt().recip();
        let y = ops::attention(part(0), part(1), part(2), &AttentionMask::None, scale);
        let y = y.swap_dims(1, 2).reshape([batch, channels, height, width]);
        self.proj.forward(y) + x
    }
}
