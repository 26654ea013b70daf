use std::ops::Range;

use burn::tensor::Tensor;

use super::RotaryTable;
use crate::layers::RmsNorm;
use crate::lora::{LoraAdapter, LoraLinear};
use crate::ops::{self, AttentionMask};

/// The layers that one stream's tokens go through before attention.
pub(crate) struct Stream<'a> {
    pub(crate) q: (&'a LoraLinear, &'a RmsNorm),
    pub(crate) k: (&'a LoraLinear, &'a RmsNorm),
    pub(crate) v: &'a LoraLinear,
    pub(crate) heads: usize,
}

/// Queries, keys and values, ready to attend.
///
/// # Shapes
/// * q: `[B, heads, kept, head_dim]`, k and v: `[B, heads, S, head_dim]`
pub(crate) struct Qkv {
    q: Tensor<4>,
    k: Tensor<4>,
    v: Tensor<4>,
}

/// Keys and values of some tokens.
///
/// # Shapes
/// * k and v: `[B, heads, S, head_dim]`
pub(crate) struct KeyValue {
    k: Tensor<4>,
    v: Tensor<4>,
}

impl Stream<'_> {
    /// Keys and values of all tokens, queries of those that are `kept`.
    ///
    /// # Shapes
    /// * x: `[B, S, D]`
    pub(crate) fn qkv(
        &self,
        x: Tensor<3>,
        kept: &Range<usize>,
        rotary: &RotaryTable,
        adapter: Option<&LoraAdapter>,
    ) -> Qkv {
        // Dropped tokens are attended to but ask nothing: norm and rotation act on each token alone, so the kept queries
        // have the bits that they would have among all.
        let x_kept = kept_tokens(x.clone(), kept);
        let q = self.rotated(x_kept, self.q, &rotary.range(kept), adapter);
        let KeyValue { k, v } = self.key_value(x, rotary, adapter);
        Qkv { q, k, v }
    }

    /// Keys and values of tokens that ask nothing themselves.
    ///
    /// # Shapes
    /// * x: `[B, S, D]`
    pub(crate) fn key_value(
        &self,
        x: Tensor<3>,
        rotary: &RotaryTable,
        adapter: Option<&LoraAdapter>,
    ) -> KeyValue {
        KeyValue {
            k: self.rotated(x.clone(), self.k, rotary, adapter),
            v: ops::split_heads(self.v.forward(x, adapter), self.heads),
        }
    }

    fn rotated(
        &self,
        x: Tensor<3>,
        (linear, norm): (&LoraLinear, &RmsNorm),
        table: &RotaryTable,
        adapter: Option<&LoraAdapter>,
    ) -> Tensor<4> {
        let (cos, sin) = (table.cos.clone(), table.sin.clone());
        let x = linear.output(x, adapter);
        ops::rms_norm_rope(x, norm.weight.val(), cos, sin, self.heads, norm.eps)
    }
}

/// The tokens `kept` of x.
///
/// # Shapes
/// * x: `[B, S, D]`
/// * output: `[B, kept, D]`
pub(crate) fn kept_tokens(x: Tensor<3>, kept: &Range<usize>) -> Tensor<3> {
    // Where all are, as in most blocks, there is nothing to undo on the way back either.
    match x.dims()[1] == kept.len() {
        true => x,
        false => x.narrow(1, kept.start, kept.len()),
    }
}

impl Qkv {
    /// The tokens of `self`, then those of `other`.
    pub(crate) fn concat(self, other: Self) -> Self {
        let concat = |a, b| Tensor::cat(vec![a, b], 2);
        Self {
            q: concat(self.q, other.q),
            k: concat(self.k, other.k),
            v: concat(self.v, other.v),
        }
    }

    /// The keys and values of `self`, then the others.
    pub(crate) fn with_keys(self, other: KeyValue) -> Self {
        Self {
            q: self.q,
            k: Tensor::cat(vec![self.k, other.k], 2),
            v: Tensor::cat(vec![self.v, other.v], 2),
        }
    }

    /// Every kept token to every token that the mask lets it see.
    ///
    /// # Shapes
    /// * output: `[B, kept, heads * head_dim]`
    pub(crate) fn attend(self, mask: &AttentionMask) -> Tensor<3> {
        let [_, _, _, head_dim] = self.q.dims();
        let scale = (head_dim as f32).sqrt().recip();
        ops::attention(self.q, self.k, self.v, mask, scale)
    }
}
