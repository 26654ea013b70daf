use burn::module::Module;
use burn::tensor::Tensor;

use super::causal_conv::CausalConv3d;
use crate::init::Init;
use crate::layers::Conv2d;

/// Halves or doubles the resolution, and in time where there is a `time_conv`, which a first frame passes by.
#[derive(Module, Debug)]
pub(super) struct Resample {
    resample: Conv2d,
    time_conv: Option<CausalConv3d>,
}

/// Whether a level's halving or doubling is of space alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Axes {
    Space,
    SpaceAndTime,
}

impl Axes {
    pub(super) fn of(temporal: bool) -> Self {
        if temporal {
            Self::SpaceAndTime
        } else {
            Self::Space
        }
    }
}

impl Resample {
    pub(super) fn init_down(channels: usize, axes: Axes, init: &Init) -> Self {
        let time_conv = || CausalConv3d::init_shaped([channels, channels], [3, 1, 1], init);
        Self {
            resample: Conv2d::init([channels, channels], 3, 2, [0, 0, 1, 1], init),
            time_conv: (axes == Axes::SpaceAndTime).then(time_conv),
        }
    }

    /// It halves the channels too.
    pub(super) fn init_up(channels: usize, axes: Axes, init: &Init) -> Self {
        let time_conv = || CausalConv3d::init_shaped([channels, 2 * channels], [3, 1, 1], init);
        Self {
            resample: Conv2d::init_same([channels, channels / 2], 3, init),
            time_conv: (axes == Axes::SpaceAndTime).then(time_conv),
        }
    }

    /// # Shapes
    /// * x: `[B, C, H, W]`
    /// * output: `[B, C, H / 2, W / 2]`
    pub(super) fn down(&self, x: Tensor<4>) -> Tensor<4> {
        self.resample.forward(x)
    }

    /// # Shapes
    /// * x: `[B, C, h, w]`
    /// * output: `[B, C / 2, 2h, 2w]`
    pub(super) fn up(&self, x: Tensor<4>) -> Tensor<4> {
        let [batch, channels, height, width] = x.dims();
        let x = x
            .reshape([batch, channels, height, 1, width, 1])
            .expand([batch, channels, height, 2, width, 2]);
        self.resample
            .forward(x.reshape([batch, channels, 2 * height, 2 * width]))
    }
}
