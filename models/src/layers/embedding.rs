use burn::module::{Module, Param};
use burn::tensor::{Int, Tensor};

use crate::init::Init;

/// A table of vectors, looked up by index.
#[derive(Module, Debug)]
pub struct Embedding {
    /// `[count, dim]`
    pub weight: Param<Tensor<2>>,
}

impl Embedding {
    /// `count` vectors of `dim` Gaussians with the given standard deviation.
    pub fn init(count: usize, dim: usize, std: f64, init: &Init) -> Self {
        Self {
            weight: init.normal([count, dim], std),
        }
    }

    /// # Shapes
    /// * ids: `[B, T]`
    /// * output: `[B, T, dim]`
    pub fn forward(&self, ids: Tensor<2, Int>) -> Tensor<3> {
        let [batch, tokens] = ids.dims();
        let [_, dim] = self.weight.dims();
        let rows = self.weight.val().select(0, ids.reshape([batch * tokens]));
        rows.reshape([batch, tokens, dim])
    }
}
