use burn::module::Module;
use burn::tensor::{Tensor, TensorData};

use super::FluxTransformerConfig;
use crate::init::Init;
use crate::layers::Linear;
use crate::ops;

const TIME_CHANNELS: usize = 256;

/// Conditioning of all blocks: time, pooled text, and guidance where the model takes it
/// (diffusers' CombinedTimestep(Guidance)TextProjEmbeddings).
#[derive(Module, Debug)]
pub(super) struct TimeTextEmbed {
    timestep_embedder: Mlp,
    guidance_embedder: Option<Mlp>,
    text_embedder: Mlp,
}

impl TimeTextEmbed {
    pub(super) fn init(config: &FluxTransformerConfig, init: &Init) -> Self {
        let dim = config.inner_dim();
        let time_embedder = || Mlp::init(TIME_CHANNELS, dim, init);
        Self {
            timestep_embedder: time_embedder(),
            guidance_embedder: config.guidance_embeds.then(time_embedder),
            text_embedder: Mlp::init(config.pooled_projection_dim, dim, init),
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
                embedder.forward(sinusoids(guidance * 1000.0).cast(dtype)) + text
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
        let sinusoids = sinusoids(timestep * 1000.0).cast(fixed.dtype());
        self.timestep_embedder.forward(sinusoids) + fixed
    }
}

/// Two linear layers with a SiLU between them.
#[derive(Module, Debug)]
struct Mlp {
    linear_1: Linear,
    linear_2: Linear,
}

impl Mlp {
    fn init(in_features: usize, dim: usize, init: &Init) -> Self {
        Self {
            linear_1: Linear::init(in_features, dim, init),
            linear_2: Linear::init(dim, dim, init),
        }
    }

    /// # Shapes
    /// * x: `[B, in]`
    /// * output: `[B, D]`
    fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        self.linear_2.forward(ops::silu(self.linear_1.forward(x)))
    }
}

/// Cosines, then sines, of t at geometrically falling frequencies (1 to 1/10000).
///
/// # Shapes
/// * t: `[B]`
/// * output: `[B, 256]`
fn sinusoids(t: Tensor<1>) -> Tensor<2> {
    const HALF: usize = TIME_CHANNELS / 2;
    // In f32 step by step, as the reference: t is up to a thousand and would magnify a difference.
    let frequency = |i: usize| (-(10_000f64.ln() as f32) * i as f32 / HALF as f32).exp();
    let frequencies: Vec<f32> = (0..HALF).map(frequency).collect();
    let frequencies = TensorData::new(frequencies, [1, HALF]);
    let angles = t.clone().unsqueeze_dim::<2>(1) * Tensor::from_data(frequencies, &t.device());
    Tensor::cat(vec![angles.clone().cos(), angles.sin()], 1)
}
