use std::ops::Range;

use burn::module::Module;
use burn::tensor::Tensor;

use super::normalization::EPS;
use super::rotary::{Rotary, RotaryTable};
use crate::layers::RmsNorm;
use crate::lora::{LoraAdapter, LoraLinear, Scope};
use crate::ops::{self, AttentionMask};

/// `FluxAttention` of a single-stream block: no output projection of its own.
#[derive(Module, Debug)]
pub(super) struct SingleAttention {
    norm_q: RmsNorm,
    norm_k: RmsNorm,
    to_q: LoraLinear,
    to_k: LoraLinear,
    to_v: LoraLinear,
    heads: usize,
}

/// `FluxAttention` of a double-stream block: both streams attend to both.
#[derive(Module, Debug)]
pub(super) struct JointAttention {
    norm_q: RmsNorm,
    norm_k: RmsNorm,
    to_q: LoraLinear,
    to_k: LoraLinear,
    to_v: LoraLinear,
    to_out: LoraLinear,
    norm_added_q: RmsNorm,
    norm_added_k: RmsNorm,
    add_q_proj: LoraLinear,
    add_k_proj: LoraLinear,
    add_v_proj: LoraLinear,
    to_add_out: LoraLinear,
    heads: usize,
}

impl SingleAttention {
    pub(super) fn init(heads: usize, head_dim: usize, scope: &Scope<'_>) -> Self {
        let dim = heads * head_dim;
        let norm = || RmsNorm::init(head_dim, EPS, scope.init());
        Self {
            norm_q: norm(),
            norm_k: norm(),
            to_q: scope.linear("to_q", dim, dim),
            to_k: scope.linear("to_k", dim, dim),
            to_v: scope.linear("to_v", dim, dim),
            heads,
        }
    }

    /// Attention of the tokens `kept` to all tokens.
    ///
    /// # Shapes
    /// * x: `[B, T + S, D]`
    /// * output: `[B, kept, D]`
    pub(super) fn forward(
        &self,
        x: Tensor<3>,
        kept: &Range<usize>,
        rotary: &Rotary,
        adapter: Option<&LoraAdapter>,
    ) -> Tensor<3> {
        let stream = Stream {
            q: (&self.to_q, &self.norm_q),
            k: (&self.to_k, &self.norm_k),
            v: &self.to_v,
        };
        stream
            .qkv(x, kept, &rotary.all, self.heads, adapter)
            .attend()
    }
}

impl JointAttention {
    pub(super) fn init(heads: usize, head_dim: usize, scope: &Scope<'_>) -> Self {
        let dim = heads * head_dim;
        let norm = || RmsNorm::init(head_dim, EPS, scope.init());
        Self {
            norm_q: norm(),
            norm_k: norm(),
            to_q: scope.linear("to_q", dim, dim),
            to_k: scope.linear("to_k", dim, dim),
            to_v: scope.linear("to_v", dim, dim),
            to_out: scope.linear("to_out.0", dim, dim),
            norm_added_q: norm(),
            norm_added_k: norm(),
            add_q_proj: scope.linear("add_q_proj", dim, dim),
            add_k_proj: scope.linear("add_k_proj", dim, dim),
            add_v_proj: scope.linear("add_v_proj", dim, dim),
            to_add_out: scope.linear("to_add_out", dim, dim),
            heads,
        }
    }

    /// Outputs of the image tokens and of the text tokens.
    ///
    /// # Shapes
    /// * x and first output: `[B, S, D]`
    /// * context and second output: `[B, T, D]`
    pub(super) fn forward(
        &self,
        x: Tensor<3>,
        context: Tensor<3>,
        rotary: &Rotary,
        adapter: Option<&LoraAdapter>,
    ) -> (Tensor<3>, Tensor<3>) {
        let [[_, image, _], [_, text, _]] = [x.dims(), context.dims()];
        let (all_text, all_image) = (0..text, 0..image);
        let added = self
            .added_stream()
            .qkv(context, &all_text, &rotary.txt, self.heads, adapter);
        let own = self
            .stream()
            .qkv(x, &all_image, &rotary.img, self.heads, adapter);
        let joint = added.concat(own).attend();
        let context = joint.clone().narrow(1, 0, text);
        let x = joint.narrow(1, text, image);
        (
            self.to_out.forward(x, adapter),
            self.to_add_out.forward(context, adapter),
        )
    }

    fn stream(&self) -> Stream<'_> {
        Stream {
            q: (&self.to_q, &self.norm_q),
            k: (&self.to_k, &self.norm_k),
            v: &self.to_v,
        }
    }

    fn added_stream(&self) -> Stream<'_> {
        Stream {
            q: (&self.add_q_proj, &self.norm_added_q),
            k: (&self.add_k_proj, &self.norm_added_k),
            v: &self.add_v_proj,
        }
    }
}

/// The layers that one stream's tokens go through before attention.
struct Stream<'a> {
    q: (&'a LoraLinear, &'a RmsNorm),
    k: (&'a LoraLinear, &'a RmsNorm),
    v: &'a LoraLinear,
}

impl Stream<'_> {
    /// Keys and values of all tokens, queries of those that are `kept`.
    ///
    /// # Shapes
    /// * x: `[B, S, D]`
    fn qkv(
        &self,
        x: Tensor<3>,
        kept: &Range<usize>,
        rotary: &RotaryTable,
        heads: usize,
        adapter: Option<&LoraAdapter>,
    ) -> Qkv {
        let rotated =
            |x: Tensor<3>, (linear, norm): (&LoraLinear, &RmsNorm), table: &RotaryTable| {
                let (cos, sin) = (table.cos.clone(), table.sin.clone());
                let x = linear.forward(x, adapter);
                ops::rms_norm_rope(x, norm.weight.val(), cos, sin, heads, norm.eps)
            };
        let x_kept = x.clone().narrow(1, kept.start, kept.len());
        Qkv {
            q: rotated(x_kept, self.q, &rotary.range(kept)),
            k: rotated(x.clone(), self.k, rotary),
            v: ops::split_heads(self.v.forward(x, adapter), heads),
        }
    }
}

/// Queries, keys and values, ready to attend.
///
/// # Shapes
/// * q: `[B, heads, kept, head_dim]`, k and v: `[B, heads, S, head_dim]`
struct Qkv {
    q: Tensor<4>,
    k: Tensor<4>,
    v: Tensor<4>,
}

impl Qkv {
    /// The tokens of `self`, then those of `other`.
    fn concat(self, other: Self) -> Self {
        let concat = |a, b| Tensor::cat(vec![a, b], 2);
        Self {
            q: concat(self.q, other.q),
            k: concat(self.k, other.k),
            v: concat(self.v, other.v),
        }
    }

    /// Every kept token to every token.
    ///
    /// # Shapes
    /// * output: `[B, kept, heads * head_dim]`
    fn attend(self) -> Tensor<3> {
        let [_, _, _, head_dim] = self.q.dims();
        let scale = (head_dim as f32).sqrt().recip();
        ops::attention(self.q, self.k, self.v, &AttentionMask::None, scale)
    }
}
