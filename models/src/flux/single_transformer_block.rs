use std::ops::Range;

use burn::module::Module;
use burn::tensor::Tensor;

use super::FluxTransformerConfig;
use super::attention::SingleAttention;
use super::rotary::Rotary;
use crate::dit::{AdaLayerNormZero, kept_tokens};
use crate::lora::{LoraAdapter, LoraLinear, Scope};
use crate::ops;

/// A single-stream block: attention and feed-forward side by side on all tokens.
#[derive(Module, Debug)]
pub(super) struct FluxSingleTransformerBlock {
    norm: AdaLayerNormZero<1>,
    proj_mlp: LoraLinear,
    proj_out: LoraLinear,
    attn: SingleAttention,
}

impl FluxSingleTransformerBlock {
    pub(super) fn init(config: &FluxTransformerConfig, scope: &Scope<'_>) -> Self {
        let dim = config.inner_dim();
        let (heads, head_dim) = (config.num_attention_heads, config.attention_head_dim);
        Self {
            norm: AdaLayerNormZero::init(dim, &scope.child("norm")),
            proj_mlp: scope.linear("proj_mlp", dim, 4 * dim),
            proj_out: scope.linear("proj_out", 5 * dim, dim),
            attn: SingleAttention::init(heads, head_dim, &scope.child("attn")),
        }
    }

    /// The block's output at the tokens `kept`, which attend to all.
    ///
    /// # Shapes
    /// * x, text tokens then image tokens: `[B, T + S, D]`
    /// * silu_temb: `[B, D]`
    /// * output: `[B, kept, D]`
    pub(super) fn forward(
        &self,
        x: Tensor<3>,
        kept: &Range<usize>,
        silu_temb: Tensor<2>,
        rotary: &Rotary,
        adapter: Option<&LoraAdapter>,
    ) -> Tensor<3> {
        let [modulation] = self.norm.forward(silu_temb, adapter);
        let keep = |x: Tensor<3>| kept_tokens(x, kept);
        let norm_x = modulation.normalize(x.clone());
        let mlp = self.proj_mlp.output(keep(norm_x.clone()), adapter);
        let attention = self.attn.forward(norm_x, kept, rotary, adapter);
        let both = Tensor::cat(vec![attention, ops::gelu_tanh(mlp)], 2);
        modulation.gate_add(keep(x), self.proj_out.output(both, adapter))
    }
}
