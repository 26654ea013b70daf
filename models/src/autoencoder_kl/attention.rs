use burn::module::Module;
use burn::tensor::Tensor;

use super::AutoencoderKlConfig;
use super::resnet::EPS;
use crate::init::Init;
use crate::layers::{GroupNorm, Linear};
use crate::ops::{self, AttentionMask};

/// One head of attention over all pixels of the lowest level, with a residual connection.
#[derive(Module, Debug)]
pub(super) struct Attention {
    group_norm: GroupNorm,
    to_q: Linear,
    to_k: Linear,
    to_v: Linear,
    to_out: Linear,
}

impl Attention {
    pub(super) fn init(config: &AutoencoderKlConfig, init: &Init) -> Self {
        let dim = config.lowest_channels();
        let linear = || Linear::init(dim, dim, init);
        Self {
            group_norm: GroupNorm::init(config.norm_num_groups, dim, EPS, init),
            to_q: linear(),
            to_k: linear(),
            to_v: linear(),
            to_out: linear(),
        }
    }

    /// # Shapes
    /// * x and output: `[B, C, H, W]`
    pub(super) fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let [batch, channels, height, width] = x.dims();
        let pixels = self.group_norm.forward(x.clone());
        let pixels = pixels
            .reshape([batch, channels, height * width])
            .swap_dims(1, 2);
        let head = |linear: &Linear| linear.forward(pixels.clone()).unsqueeze_dim::<4>(1);
        let scale = (channels as f32).sqrt().recip();
        let (q, k, v) = (head(&self.to_q), head(&self.to_k), head(&self.to_v));
        let y = ops::attention(q, k, v, &AttentionMask::None, scale);
        let y = self.to_out.forward(y).swap_dims(1, 2);
        x + y.reshape([batch, channels, height, width])
    }
}
