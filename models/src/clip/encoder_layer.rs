use burn::module::Module;
use burn::tensor::Tensor;

use super::{ClipTextConfig, HiddenAct};
use crate::init::Init;
use crate::layers::{LayerNorm, Linear};
use crate::ops::{self, AttentionMask};

/// Causal attention and a feed-forward layer, each normalised before and added after.
#[derive(Module, Debug)]
pub(super) struct EncoderLayer {
    self_attn: SelfAttention,
    layer_norm1: LayerNorm,
    mlp: Mlp,
    layer_norm2: LayerNorm,
}

#[derive(Module, Debug)]
struct SelfAttention {
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    out_proj: Linear,
    heads: usize,
}

#[derive(Module, Debug)]
struct Mlp {
    fc1: Linear,
    fc2: Linear,
    #[module(skip)]
    act: HiddenAct,
}

impl EncoderLayer {
    pub(super) fn init(config: &ClipTextConfig, init: &Init) -> Self {
        let (dim, wide) = (config.hidden_size, config.intermediate_size);
        let norm = || LayerNorm::init(dim, config.layer_norm_eps, init);
        let linear = || Linear::init(dim, dim, init);
        Self {
            self_attn: SelfAttention {
                q_proj: linear(),
                k_proj: linear(),
                v_proj: linear(),
                out_proj: linear(),
                heads: config.num_attention_heads,
            },
            layer_norm1: norm(),
            mlp: Mlp {
                fc1: Linear::init(dim, wide, init),
                fc2: Linear::init(wide, dim, init),
                act: config.hidden_act,
            },
            layer_norm2: norm(),
        }
    }

    /// # Shapes
    /// * x and output: `[B, T, D]`
    pub(super) fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let y = self.self_attn.forward(self.layer_norm1.forward(x.clone()));
        let x = x + y;
        let y = self.mlp.forward(self.layer_norm2.forward(x.clone()));
        x + y
    }
}

impl SelfAttention {
    /// # Shapes
    /// * x and output: `[B, T, D]`
    fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let head = |linear: &Linear| ops::split_heads(linear.forward(x.clone()), self.heads);
        let (q, k, v) = (head(&self.q_proj), head(&self.k_proj), head(&self.v_proj));
        let [_, _, _, head_dim] = q.dims();
        let scale = (head_dim as f32).sqrt().recip();
        self.out_proj
            .forward(ops::attention(q, k, v, &AttentionMask::Causal, scale))
    }
}

impl Mlp {
    /// # Shapes
    /// * x and output: `[B, T, D]`
    fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let x = self.fc1.forward(x);
        self.fc2.forward(match self.act {
            HiddenAct::QuickGelu => ops::quick_gelu(x),
            HiddenAct::Gelu => ops::gelu_erf(x),
        })
    }
}
