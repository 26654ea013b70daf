use burn::module::{Module, Param};
use burn::tensor::Tensor;

use crate::init::Init;
use crate::ops;

/// y = x W^T + b, with the weight as checkpoints have it.
#[derive(Module, Debug)]
pub struct Linear {
    /// `[out, in]`
    pub weight: Param<Tensor<2>>,
    /// `[out]`
    pub bias: Option<Param<Tensor<1>>>,
}

impl Linear {
    /// A layer with a bias.
    pub fn init(in_features: usize, out_features: usize, init: &Init) -> Self {
        Self {
            weight: init.fan_in([out_features, in_features]),
            bias: Some(init.zeros([out_features])),
        }
    }

    /// A layer without a bias.
    pub fn init_no_bias(in_features: usize, out_features: usize, init: &Init) -> Self {
        Self {
            weight: init.fan_in([out_features, in_features]),
            bias: None,
        }
    }

    /// # Shapes
    /// * x: `[.., in]`
    /// * output: `[.., out]`
    pub fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        let bias = self.bias.as_ref().map(Param::val);
        ops::linear(x, self.weight.val(), bias)
    }
}
