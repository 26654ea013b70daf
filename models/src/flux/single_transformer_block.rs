use burn::module::Module;
use burn::tensor::Tensor;

use super::FluxTransformerConfig;
use super::attention::SingleAttention;
use super::normalization::AdaLayerNormZero;
use super::rotary::Rotary;
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

    /// # Shapes
    /// * x and output, text tokens then image tokens: `[B, T + S, D]`
    /// * silu_temb: `[B, D]`
    pub(super) fn forward(
        &self,
        x: Tensor<3>,
        silu_temb: Tensor<2>,
        rotary: &Rotary,
        adapter: Option<&LoraAdapter>,
    ) -> Tensor<3> {
        let [modulation] = self.norm.forward(silu_temb, adapter);
        let norm_x = modulation.normalize(x.clone());
        let mlp = ops::gelu_tanh(self.proj_mlp.forward(norm_x.clone(), adapter));
        let attention = self.attn.forward(norm_x, rotary, adapter);
        let both = Tensor::cat(vec![attention, mlp], 2);
        modulation.gate_add(x, self.proj_out.forward(both, adapter))
    }
}
