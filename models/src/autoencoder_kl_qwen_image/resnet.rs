use burn::module::Module;
use burn::tensor::Tensor;

use super::causal_conv::CausalConv3d;
use super::norm::ChannelNorm;
use crate::init::Init;

/// Two convolutions with a residual connection.
#[derive(Module, Debug)]
pub(super) struct ResidualBlock {
    norm1: ChannelNorm<4>,
    conv1: CausalConv3d,
    norm2: ChannelNorm<4>,
    conv2: CausalConv3d,
    conv_shortcut: Option<CausalConv3d>,
}

impl ResidualBlock {
    pub(super) fn init(channels: [usize; 2], init: &Init) -> Self {
        let [from, to] = channels;
        Self {
            norm1: ChannelNorm::init(from, init),
            conv1: CausalConv3d::init(channels, 3, init),
            norm2: ChannelNorm::init(to, init),
            conv2: CausalConv3d::init([to, to], 3, init),
            conv_shortcut: (from != to).then(|| CausalConv3d::init(channels, 1, init)),
        }
    }

    /// # Shapes
    /// * x: `[B, from, H, W]`
    /// * output: `[B, to, H, W]`
    pub(super) fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let y = self.conv1.forward(self.norm1.forward_silu(x.clone()));
        let y = self.conv2.forward(self.norm2.forward_silu(y));
        match &self.conv_shortcut {
            Some(shortcut) => y + shortcut.forward(x),
            None => y + x,
        }
    }
}
