//! What the vision tower and the language model share.

use burn::module::Module;
use burn::tensor::{Device, Int, Tensor, TensorData};

use crate::init::Init;
use crate::layers::{Linear, RmsNorm};
use crate::ops;

/// Gated MLP: `down(silu(gate(x)) * up(x))`
#[derive(Module, Debug)]
pub(super) struct Mlp {
    /// `[intermediate, hidden]`
    pub(super) gate_proj: Linear,
    /// `[intermediate, hidden]`
    pub(super) up_proj: Linear,
    /// `[hidden, intermediate]`
    pub(super) down_proj: Linear,
}

impl Mlp {
    /// # Shapes
    /// * x and output: `[.., hidden]`
    pub(super) fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        let hidden = ops::silu_mul(self.gate_proj.forward(x.clone()), self.up_proj.forward(x));
        self.down_proj.forward(hidden)
    }
}

/// Makes layers whose weights are Gaussians of one standard deviation.
pub(super) struct LayerInit<'a> {
    pub(super) init: &'a Init,
    pub(super) std: f64,
}

impl LayerInit<'_> {
    pub(super) fn linear(&self, in_features: usize, out_features: usize) -> Linear {
        Linear {
            bias: Some(self.init.zeros([out_features])),
            ..self.linear_no_bias(in_features, out_features)
        }
    }

    pub(super) fn linear_no_bias(&self, in_features: usize, out_features: usize) -> Linear {
        Linear {
            weight: self.init.normal([out_features, in_features], self.std),
            bias: None,
        }
    }

    pub(super) fn norm(&self, features: usize, eps: f64) -> RmsNorm {
        RmsNorm::init(features, eps, self.init)
    }

    pub(super) fn mlp(&self, hidden: usize, intermediate: usize) -> Mlp {
        Mlp {
            gate_proj: self.linear_no_bias(hidden, intermediate),
            up_proj: self.linear_no_bias(hidden, intermediate),
            down_proj: self.linear_no_bias(intermediate, hidden),
        }
    }

    pub(super) fn mlp_with_bias(&self, hidden: usize, intermediate: usize) -> Mlp {
        Mlp {
            gate_proj: self.linear(hidden, intermediate),
            up_proj: self.linear(hidden, intermediate),
            down_proj: self.linear(intermediate, hidden),
        }
    }
}

/// The rows of `x` at `indices`, in that order.
///
/// # Shapes
/// * x: `[N, D..]`
/// * output: `[indices.len(), D..]`
pub(crate) fn rows<const D: usize>(x: Tensor<D>, indices: &[usize]) -> Tensor<D> {
    let indices = row_indices(indices, &x.device());
    x.select(0, indices)
}

/// What [`rows`] selects by, for those who select by it more than once.
pub(super) fn row_indices(indices: &[usize], device: &Device) -> Tensor<1, Int> {
    let values: Vec<i64> = indices.iter().map(|index| *index as i64).collect();
    Tensor::from_data(TensorData::new(values, [indices.len()]), device)
}
