use burn::module::Module;
use burn::tensor::Tensor;

use crate::init::Init;
use crate::layers::Linear;
use crate::lora::{LoraAdapter, LoraLinear, Scope};
use crate::ops::{self, LinearOutput};

pub(crate) const EPS: f64 = 1e-6;

/// Shift, scale and gate of one branch, from the conditioning.
///
/// # Shapes
/// * each: `[B, 1, D]`
pub(crate) struct Modulation {
    pub(crate) shift: Tensor<3>,
    pub(crate) scale: Tensor<3>,
    pub(crate) gate: Tensor<3>,
}

impl Modulation {
    /// Layer normalisation of `x`, shifted and scaled.
    ///
    /// # Shapes
    /// * x and output: `[B, S, D]`
    pub(crate) fn normalize(&self, x: Tensor<3>) -> Tensor<3> {
        ops::layer_norm_modulate(x, self.shift.clone(), self.scale.clone(), EPS)
    }

    /// x + gate y.
    ///
    /// # Shapes
    /// * x, y and output: `[B, S, D]`
    pub(crate) fn gate_add(&self, x: Tensor<3>, y: LinearOutput<3>) -> Tensor<3> {
        ops::gate_add(x, y, self.gate.clone())
    }
}

/// `N` modulations of a block's branches: diffusers' AdaLayerNormZero (N = 2, attention and
/// feed-forward) and AdaLayerNormZeroSingle (N = 1).
#[derive(Module, Debug)]
pub(crate) struct AdaLayerNormZero<const N: usize> {
    linear: LoraLinear,
}

impl<const N: usize> AdaLayerNormZero<N> {
    pub(crate) fn init(dim: usize, scope: &Scope<'_>) -> Self {
        Self::init_as("linear", dim, scope)
    }

    /// With a linear layer that the reference calls `name`.
    pub(crate) fn init_as(name: &str, dim: usize, scope: &Scope<'_>) -> Self {
        Self {
            linear: scope.linear(name, dim, 3 * N * dim),
        }
    }

    /// # Shapes
    /// * silu_temb, silu of the conditioning: `[B, D]`
    pub(crate) fn forward(
        &self,
        silu_temb: Tensor<2>,
        adapter: Option<&LoraAdapter>,
    ) -> [Modulation; N] {
        // The silu that the reference has here is taken once for all blocks.
        let parts = self
            .linear
            .forward(silu_temb, adapter)
            .unsqueeze_dim::<3>(1);
        let mut parts = parts.chunk(3 * N, 2).into_iter();
        std::array::from_fn(|_| {
            let mut next = || parts.next().expect("3 N parts");
            Modulation {
                shift: next(),
                scale: next(),
                gate: next(),
            }
        })
    }
}

/// The normalisation before the output projection.
#[derive(Module, Debug)]
pub(crate) struct AdaLayerNormContinuous {
    linear: Linear,
}

impl AdaLayerNormContinuous {
    pub(crate) fn init(dim: usize, init: &Init) -> Self {
        Self {
            linear: Linear::init(dim, 2 * dim, init),
        }
    }

    /// # Shapes
    /// * x and output: `[B, S, D]`
    /// * silu_temb: `[B, D]`
    pub(crate) fn forward(&self, x: Tensor<3>, silu_temb: Tensor<2>) -> Tensor<3> {
        let parts = self.linear.forward(silu_temb).unsqueeze_dim::<3>(1);
        // Scale comes first here, unlike in the blocks.
        let [scale, shift]: [Tensor<3>; 2] = parts.chunk(2, 2).try_into().expect("two parts");
        ops::layer_norm_modulate(x, shift, scale, EPS)
    }
}
