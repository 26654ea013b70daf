use burn::module::Module;
use burn::tensor::Tensor;

use super::attention::AttentionBlock;
use super::resnet::ResidualBlock;
use crate::init::Init;

/// The lowest level: residual blocks with attention between them.
#[derive(Module, Debug)]
pub(super) struct MidBlock {
    attentions: Vec<AttentionBlock>,
    resnets: Vec<ResidualBlock>,
}

impl MidBlock {
    pub(super) fn init(channels: usize, init: &Init) -> Self {
        let resnet = |_| ResidualBlock::init([channels, channels], init);
        Self {
            attentions: vec![AttentionBlock::init(channels, init)],
            resnets: (0..2).map(resnet).collect(),
        }
    }

    /// # Shapes
    /// * x and output: `[B, C, H, W]`
    pub(super) fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let x = self.resnets[0].forward(x);
        let pairs = self.attentions.iter().zip(&self.resnets[1..]);
        pairs.fold(x, |x, (attention, resnet)| {
            resnet.forward(attention.forward(x))
        })
    }
}
