use burn::module::Module;
use burn::tensor::Tensor;

use super::T5Config;
use super::attention::T5Attention;
use crate::init::Init;
use crate::layers::{Linear, RmsNorm};
use crate::ops;

/// Attention and a feed-forward layer, each normalised before and added after.
#[derive(Module, Debug)]
pub(super) struct T5Block {
    pub(super) self_attention: LayerSelfAttention,
    feed_forward: LayerFeedForward,
}

#[derive(Module, Debug)]
pub(super) struct LayerSelfAttention {
    pub(super) attention: T5Attention,
    layer_norm: RmsNorm,
}

#[derive(Module, Debug)]
struct LayerFeedForward {
    dense: DenseGatedGelu,
    layer_norm: RmsNorm,
}

#[derive(Module, Debug)]
struct DenseGatedGelu {
    wi_0: Linear,
    wi_1: Linear,
    wo: Linear,
}

impl T5Block {
    pub(super) fn init(config: &T5Config, layer: usize, init: &Init) -> Self {
        let (dim, wide) = (config.d_model, config.d_ff);
        let norm = || RmsNorm::init(dim, config.layer_norm_epsilon, init);
        Self {
            self_attention: LayerSelfAttention {
                attention: T5Attention::init(config, layer, init),
                layer_norm: norm(),
            },
            feed_forward: LayerFeedForward {
                dense: DenseGatedGelu {
                    wi_0: Linear::init_no_bias(dim, wide, init),
                    wi_1: Linear::init_no_bias(dim, wide, init),
                    wo: Linear::init_no_bias(wide, dim, init),
                },
                layer_norm: norm(),
            },
        }
    }

    /// # Shapes
    /// * x and output: `[B, T, D]`
    /// * bias: `[B or 1, heads, T, T]`
    pub(super) fn forward(&self, x: Tensor<3>, bias: Tensor<4>) -> Tensor<3> {
        let LayerSelfAttention {
            attention,
            layer_norm,
        } = &self.self_attention;
        let y = attention.forward(layer_norm.forward(x.clone()), bias);
        let x = x + y;
        let LayerFeedForward { dense, layer_norm } = &self.feed_forward;
        let y = dense.forward(layer_norm.forward(x.clone()));
        x + y
    }
}

impl DenseGatedGelu {
    /// # Shapes
    /// * x and output: `[B, T, D]`
    fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let (gate, up) = (self.wi_0.forward(x.clone()), self.wi_1.forward(x));
        self.wo.forward(ops::gelu_tanh_mul(gate, up))
    }
}
