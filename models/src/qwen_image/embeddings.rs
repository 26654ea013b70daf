use burn::module::Module;
use burn::tensor::{DType, Tensor};

use crate::dit::{TimestepEmbedding, sinusoids};
use crate::init::Init;

/// Conditioning of all blocks by time alone (diffusers' QwenTimestepProjEmbeddings).
#[derive(Module, Debug)]
pub(super) struct TimeTextEmbed {
    timestep_embedder: TimestepEmbedding,
}

impl TimeTextEmbed {
    pub(super) fn init(dim: usize, init: &Init) -> Self {
        Self {
            timestep_embedder: TimestepEmbedding::of_time(dim, init),
        }
    }

    /// Time in 0..1.
    ///
    /// # Shapes
    /// * timestep: `[B]`
    /// * output: `[B, D]`
    pub(super) fn forward(&self, timestep: Tensor<1>, dtype: DType) -> Tensor<2> {
        self.timestep_embedder
            .forward(sinusoids(timestep, 1000.0).cast(dtype))
    }
}
