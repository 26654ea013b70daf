use burn::module::{Module, Param};
use burn::tensor::Tensor;

use crate::init::Init;
use crate::ops;

/// Layer normalisation over the last dimension, with an affine part.
#[derive(Module, Debug)]
pub struct LayerNorm {
    /// `[dim]`
    pub weight: Param<Tensor<1>>,
    /// `[dim]`
    pub bias: Param<Tensor<1>>,
    eps: f64,
}

impl LayerNorm {
    /// Starts as the plain normalisation.
    pub fn init(dim: usize, eps: f64, init: &Init) -> Self {
        Self {
            weight: init.ones([dim]),
            bias: init.zeros([dim]),
            eps,
        }
    }

    /// # Shapes
    /// * x and output: `[.., dim]`
    pub fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        ops::layer_norm(x, Some(self.weight.val()), Some(self.bias.val()), self.eps)
    }
}

/// Root-mean-square normalisation over the last dimension.
#[derive(Module, Debug)]
pub struct RmsNorm {
    /// `[dim]`
    pub weight: Param<Tensor<1>>,
    /// Added to the mean square.
    pub eps: f64,
}

impl RmsNorm {
    /// Starts as the plain normalisation.
    pub fn init(dim: usize, eps: f64, init: &Init) -> Self {
        Self {
            weight: init.ones([dim]),
            eps,
        }
    }

    /// # Shapes
    /// * x and output: `[.., dim]`
    pub fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        ops::rms_norm(x, self.weight.val(), self.eps)
    }
}

/// Normalisation of groups of channels over channels and space.
#[derive(Module, Debug)]
pub struct GroupNorm {
    /// `[channels]`
    pub weight: Param<Tensor<1>>,
    /// `[channels]`
    pub bias: Param<Tensor<1>>,
    groups: usize,
    eps: f64,
}

impl GroupNorm {
    /// Starts as the plain normalisation; `groups` divides `channels`.
    pub fn init(groups: usize, channels: usize, eps: f64, init: &Init) -> Self {
        Self {
            weight: init.ones([channels]),
            bias: init.zeros([channels]),
            groups,
            eps,
        }
    }

    /// # Shapes
    /// * x and output: `[B, channels, ..]`
    pub fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        ops::group_norm(x, self.weight.val(), self.bias.val(), self.groups, self.eps)
    }

    /// `silu` of [`GroupNorm::forward`].
    ///
    /// # Shapes
    /// * x and output: `[B, channels, ..]`
    pub fn forward_silu<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        ops::group_norm_silu(x, self.weight.val(), self.bias.val(), self.groups, self.eps)
    }
}
