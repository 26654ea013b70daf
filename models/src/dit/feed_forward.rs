use burn::module::Module;
use burn::tensor::Tensor;

use crate::lora::{LoraAdapter, LoraLinear, Scope};
use crate::ops::{self, LinearOutput};

/// Two linear layers, four times as wide between them, with a GELU (tanh).
#[derive(Module, Debug)]
pub(crate) struct FeedForward {
    proj_in: LoraLinear,
    proj_out: LoraLinear,
}

impl FeedForward {
    pub(crate) fn init(dim: usize, scope: &Scope<'_>) -> Self {
        Self {
            proj_in: scope.linear("net.0.proj", dim, 4 * dim),
            proj_out: scope.linear("net.2", 4 * dim, dim),
        }
    }

    /// # Shapes
    /// * x and output: `[B, S, D]`
    pub(crate) fn forward(&self, x: Tensor<3>, adapter: Option<&LoraAdapter>) -> LinearOutput<3> {
        let hidden = ops::gelu_tanh(self.proj_in.output(x, adapter));
        self.proj_out.output(hidden, adapter)
    }
}
