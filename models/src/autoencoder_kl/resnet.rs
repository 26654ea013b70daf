use burn::module::Module;
use burn::tensor::Tensor;

use super::AutoencoderKlConfig;
use crate::init::Init;
use crate::layers::{Conv2d, GroupNorm};

pub(super) const EPS: f64 = 1e-6;

/// Two convolutions with a residual connection.
#[derive(Module, Debug)]
pub(super) struct ResnetBlock {
    norm1: GroupNorm,
    conv1: Conv2d,
    norm2: GroupNorm,
    conv2: Conv2d,
    conv_shortcut: Option<Conv2d>,
}

impl ResnetBlock {
    pub(super) fn init(channels: [usize; 2], config: &AutoencoderKlConfig, init: &Init) -> Self {
        let [from, to] = channels;
        let groups = config.norm_num_groups;
        Self {
            norm1: GroupNorm::init(groups, from, EPS, init),
            conv1: Conv2d::init_same(channels, 3, init),
            norm2: GroupNorm::init(groups, to, EPS, init),
            conv2: Conv2d::init_same([to, to], 3, init),
            conv_shortcut: (from != to).then(|| Conv2d::init_same(channels, 1, init)),
        }
    }

    /// # Shapes
    /// * x: `[B, from, H, W]`
    /// * output: `[B, to, H, W]`
    pub(super) fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let y = self.conv1.forward(self.norm1.forward_silu(x.clone()));
        let y = self.conv2.forward(self.norm2.forward_silu(y));
        match &self.conv_shortcut {
            Some(shortcut) => shortcut.forward(x) + y,
            None => x + y,
        }
    }
}
