use burn::module::Module;
use burn::tensor::{Tensor, TensorData};

use crate::init::Init;
use crate::layers::Linear;
use crate::ops;

const TIME_CHANNELS: usize = 256;

/// Two linear layers with a SiLU between them.
#[derive(Module, Debug)]
pub(crate) struct TimestepEmbedding {
    linear_1: Linear,
    linear_2: Linear,
}

impl TimestepEmbedding {
    /// Of vectors of `in_features`.
    pub(crate) fn init(in_features: usize, dim: usize, init: &Init) -> Self {
        Self {
            linear_1: Linear::init(in_features, dim, init),
            linear_2: Linear::init(dim, dim, init),
        }
    }

    /// Of [`sinusoids`].
    pub(crate) fn of_time(dim: usize, init: &Init) -> Self {
        Self::init(TIME_CHANNELS, dim, init)
    }

    /// # Shapes
    /// * x: `[B, in]`
    /// * output: `[B, D]`
    pub(crate) fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        self.linear_2.forward(ops::silu(self.linear_1.forward(x)))
    }
}

/// Cosines, then sines, of t at geometrically falling frequencies (1 to 1/10000), times `scale`.
///
/// # Shapes
/// * t: `[B]`
/// * output: `[B, 256]`
pub(crate) fn sinusoids(t: Tensor<1>, scale: f64) -> Tensor<2> {
    const HALF: usize = TIME_CHANNELS / 2;
    // In f32 step by step, as the reference: angles go up to a thousand and would magnify a difference.
    let frequency = |i: usize| (-(10_000f64.ln() as f32) * i as f32 / HALF as f32).exp();
    let frequencies: Vec<f32> = (0..HALF).map(frequency).collect();
    let frequencies = TensorData::new(frequencies, [1, HALF]);
    let angles = t.clone().unsqueeze_dim::<2>(1) * Tensor::from_data(frequencies, &t.device());
    let angles = angles * scale;
    Tensor::cat(vec![angles.clone().cos(), angles.sin()], 1)
}
