use burn::module::Module;
use burn::tensor::Tensor;

use super::FluxTransformerConfig;
use super::rotary::Rotary;
use crate::dit::{AdaLayerNormZero, FeedForward, JointAttention};
use crate::lora::{LoraAdapter, Scope};

/// A double-stream block: image and text tokens have their own weights and attend jointly.
#[derive(Module, Debug)]
pub(super) struct FluxTransformerBlock {
    norm1: AdaLayerNormZero<2>,
    norm1_context: AdaLayerNormZero<2>,
    attn: JointAttention,
    ff: FeedForward,
    ff_context: FeedForward,
}

impl FluxTransformerBlock {
    pub(super) fn init(config: &FluxTransformerConfig, scope: &Scope<'_>) -> Self {
        let dim = config.inner_dim();
        let (heads, head_dim) = (config.num_attention_heads, config.attention_head_dim);
        Self {
            norm1: AdaLayerNormZero::init(dim, &scope.child("norm1")),
            norm1_context: AdaLayerNormZero::init(dim, &scope.child("norm1_context")),
            attn: JointAttention::init(heads, head_dim, &scope.child("attn")),
            ff: FeedForward::init(dim, &scope.child("ff")),
            ff_context: FeedForward::init(dim, &scope.child("ff_context")),
        }
    }

    /// # Shapes
    /// * x and first output, image tokens: `[B, S, D]`
    /// * context and second output, text tokens: `[B, T, D]`
    /// * silu_temb: `[B, D]`
    pub(super) fn forward(
        &self,
        x: Tensor<3>,
        context: Tensor<3>,
        silu_temb: Tensor<2>,
        rotary: &Rotary,
        adapter: Option<&LoraAdapter>,
    ) -> (Tensor<3>, Tensor<3>) {
        let [msa, mlp] = self.norm1.forward(silu_temb.clone(), adapter);
        let [c_msa, c_mlp] = self.norm1_context.forward(silu_temb, adapter);

        let (norm_x, norm_context) = (msa.normalize(x.clone()), c_msa.normalize(context.clone()));
        let (attn_x, attn_context) =
            self.attn
                .forward(norm_x, norm_context, rotary.joint(), adapter);
        let x = msa.gate_add(x, attn_x);
        let context = c_msa.gate_add(context, attn_context);

        let ff_x = self.ff.forward(mlp.normalize(x.clone()), adapter);
        let ff_context = self
            .ff_context
            .forward(c_mlp.normalize(context.clone()), adapter);
        (mlp.gate_add(x, ff_x), c_mlp.gate_add(context, ff_context))
    }
}
