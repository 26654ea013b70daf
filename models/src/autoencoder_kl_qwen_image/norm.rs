use burn::module::{Module, Param};
use burn::tensor::{DType, Tensor};

use crate::init::Init;
use crate::ops;

/// Shortest vector that is still told from zero, the reference's.
const LENGTH_MIN: f64 = 1e-12;

/// Every pixel's channels brought to root mean square 1 in f32, then scaled (`QwenImageRMS_norm`). `D` is 4 where the
/// reference normalises videos, 3 where it normalises images; that is all they differ in.
#[derive(Module, Debug)]
pub(super) struct ChannelNorm<const D: usize> {
    /// `[channels, 1, ..]`
    gamma: Param<Tensor<D>>,
}

impl<const D: usize> ChannelNorm<D> {
    pub(super) fn init(channels: usize, init: &Init) -> Self {
        let mut shape = [1; D];
        shape[0] = channels;
        Self {
            gamma: init.ones(shape),
        }
    }

    /// # Shapes
    /// * x and output: `[B, C, H, W]`
    pub(super) fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let ([_, channels, ..], dtype) = (x.dims(), x.dtype());
        let wide = |x: Tensor<4>| x.cast(DType::F32);
        let x = wide(x);
        let length = (x.clone() * x.clone()).sum_dim(1).sqrt();
        let gamma = wide(self.gamma.val().reshape([1, channels, 1, 1]));
        let x = x / length.clamp_min(LENGTH_MIN) * (gamma * (channels as f64).sqrt());
        x.cast(dtype)
    }

    /// `silu` of [`ChannelNorm::forward`].
    ///
    /// # Shapes
    /// * x and output: `[B, C, H, W]`
    pub(super) fn forward_silu(&self, x: Tensor<4>) -> Tensor<4> {
        ops::silu(self.forward(x))
    }
}
