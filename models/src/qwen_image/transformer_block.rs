use burn::module::Module;
use burn::tensor::Tensor;

use super::QwenImageTransformerConfig;
use crate::dit::{AdaLayerNormZero, FeedForward, JointAttention, JointRotary, kept_tokens};
use crate::lora::{LoraAdapter, Scope};
use crate::ops::AttentionMask;

/// A double-stream block: image and text tokens have their own weights and attend jointly.
#[derive(Module, Debug)]
pub(super) struct QwenImageTransformerBlock {
    img_mod: AdaLayerNormZero<2>,
    attn: JointAttention,
    img_mlp: FeedForward,
    txt_mod: AdaLayerNormZero<2>,
    txt_mlp: FeedForward,
}

/// What all blocks of one step are given beside the tokens.
#[derive(Clone, Copy)]
pub(super) struct Conditioning<'a> {
    /// Silu of the conditioning: `[B, D]`
    pub(super) silu_temb: &'a Tensor<2>,
    pub(super) rotary: JointRotary<'a>,
    pub(super) mask: &'a AttentionMask,
    pub(super) adapter: Option<&'a LoraAdapter>,
}

impl QwenImageTransformerBlock {
    pub(super) fn init(config: &QwenImageTransformerConfig, scope: &Scope<'_>) -> Self {
        let dim = config.inner_dim();
        let (heads, head_dim) = (config.num_attention_heads, config.attention_head_dim);
        Self {
            img_mod: AdaLayerNormZero::init_as("1", dim, &scope.child("img_mod")),
            attn: JointAttention::init(heads, head_dim, &scope.child("attn")),
            img_mlp: FeedForward::init(dim, &scope.child("img_mlp")),
            txt_mod: AdaLayerNormZero::init_as("1", dim, &scope.child("txt_mod")),
            txt_mlp: FeedForward::init(dim, &scope.child("txt_mlp")),
        }
    }

    /// # Shapes
    /// * x and first output, image tokens: `[B, S, D]`
    /// * context and second output, text tokens: `[B, T, D]`
    pub(super) fn forward(
        &self,
        x: Tensor<3>,
        context: Tensor<3>,
        given: Conditioning<'_>,
    ) -> (Tensor<3>, Tensor<3>) {
        let adapter = given.adapter;
        let [msa, mlp] = self.img_mod.forward(given.silu_temb.clone(), adapter);
        let [c_msa, c_mlp] = self.txt_mod.forward(given.silu_temb.clone(), adapter);

        let (norm_x, norm_context) = (msa.normalize(x.clone()), c_msa.normalize(context.clone()));
        let (attn_x, attn_context) =
            self.attn
                .forward_masked(norm_x, norm_context, given.rotary, given.mask, adapter);
        let x = msa.gate_add(x, attn_x);
        let context = c_msa.gate_add(context, attn_context);

        let ff_x = self.img_mlp.forward(mlp.normalize(x.clone()), adapter);
        let ff_context = self
            .txt_mlp
            .forward(c_mlp.normalize(context.clone()), adapter);
        (mlp.gate_add(x, ff_x), c_mlp.gate_add(context, ff_context))
    }

    /// As [`QwenImageTransformerBlock::forward`], of the first `kept` image tokens alone: nothing reads the others
    /// after the last block.
    ///
    /// # Shapes
    /// * x: `[B, S, D]`, context: `[B, T, D]`
    /// * output: `[B, kept, D]`
    pub(super) fn forward_last(
        &self,
        x: Tensor<3>,
        kept: usize,
        context: Tensor<3>,
        given: Conditioning<'_>,
    ) -> Tensor<3> {
        let adapter = given.adapter;
        let [msa, mlp] = self.img_mod.forward(given.silu_temb.clone(), adapter);
        let [c_msa, _] = self.txt_mod.forward(given.silu_temb.clone(), adapter);

        let (norm_x, norm_context) = (msa.normalize(x.clone()), c_msa.normalize(context));
        let attn_x = self.attn.forward_image(
            norm_x,
            kept,
            norm_context,
            given.rotary,
            given.mask,
            adapter,
        );
        let x = msa.gate_add(kept_tokens(x, &(0..kept)), attn_x);
        let ff_x = self.img_mlp.forward(mlp.normalize(x.clone()), adapter);
        mlp.gate_add(x, ff_x)
    }
}
