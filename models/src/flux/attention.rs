use std::ops::Range;

use burn::module::Module;
use burn::tensor::Tensor;

use super::rotary::Rotary;
use crate::dit::{EPS, Stream};
use crate::layers::RmsNorm;
use crate::lora::{LoraAdapter, LoraLinear, Scope};
use crate::ops::AttentionMask;

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
            heads: self.heads,
        };
        stream
            .qkv(x, kept, &rotary.all, adapter)
            .attend(&AttentionMask::None)
    }
}
