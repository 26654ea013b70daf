use burn::module::Module;
use burn::tensor::Tensor;

use super::FluxTransformerConfig;
use crate::dit::{TimestepEmbedding, sinusoids};
use crate::init::Init;

/// Conditioning of all blocks: time, pooled text, and guidance where the model takes it
/// (diffusers' CombinedTimestep(Guidance)TextProjEmbeddings).
#[derive(Module, Debug)]
pub(super) struct TimeTextEmbed {
    timestep_embedder: TimestepEmbedding,
    guidance_embedder: Option<TimestepEmbedding>,
    text_embedder: TimestepEmbedding,
}

impl TimeTextEmbed {
    pub(super) fn init(config: &FluxTransformerConfig, init: &Init) -> Self {
        let dim = config.inner_dim();
        let time_embedder = || TimestepEmbedding::of_time(dim, init);
        Self {
            timestep_embedder: time_embedder(),
            guidance_embedder: config.guidance_embeds.then(time_embedder),
            text_embedder: TimestepEmbedding::init(config.pooled_projection_dim, dim, init),
        }
    }

    /// The part that does not depend on time.
    ///
    /// # Shapes
    /// * pooled_projections: `[B, P]`, guidance: `[B]`
    /// * output: `[B, D]`
    pub(super) fn fixed(
        &self,
        pooled_projections: Tensor<2>,
        guidance: Option<Tensor<1>>,
    ) -> Tensor<2> {
        let text = self.text_embedder.forward(pooled_projections);
        match (&self.guidance_embedder, guidance) {
            (Some(embedder), Some(guidance)) => {
                let dtype = text.dtype();
                embedder.forward(sinusoids(guidance * 1000.0, 1.0).cast(dtype)) + text
            }
            (None, _) => text,
            (Some(_), None) => panic!("a model with guidance_embeds needs a guidance scale"),
        }
    }

    /// Time in 0..1.
    ///
    /// # Shapes
    /// * timestep: `[B]`
    /// * fixed, as [`TimeTextEmbed::fixed`] gives it: `[B or 1, D]`
    /// * output: `[B, D]`
    pub(super) fn forward(&self, timestep: Tensor<1>, fixed: Tensor<2>) -> Tensor<2> {
        let sinusoids = sinusoids(timestep * 1000.0, 1.0).cast(fixed.dtype());
        self.timestep_embedder.forward(sinusoids) + fixed
    }
}
