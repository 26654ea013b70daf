use burn::module::Module;
use burn::tensor::Tensor;

use super::AutoencoderKlConfig;
use super::attention::Attention;
use super::resnet::ResnetBlock;
use crate::init::Init;

/// The lowest level: a residual block, attention if configured, a residual block.
#[derive(Module, Debug)]
pub(super) struct MidBlock {
    resnets: Vec<ResnetBlock>,
    attentions: Vec<Attention>,
}

impl MidBlock {
    pub(super) fn init(config: &AutoencoderKlConfig, init: &Init) -> Self {
        let dim = config.lowest_channels();
        let attentions = usize::from(config.mid_block_add_attention);
        Self {
            resnets: (0..2)
                .map(|_| ResnetBlock::init([dim, dim], config, init))
                .collect(),
            attentions: (0..attentions)
                .map(|_| Attention::init(config, init))
                .collect(),
        }
    }

    /// # Shapes
    /// * x and output: `[B, C, H, W]`
    pub(super) fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let x = self.resnets[0].forward(x);
        let x = self
            .attentions
            .iter()
            .fold(x, |x, attention| attention.forward(x));
        self.resnets[1].forward(x)
    }
}
