use burn::module::{Module, Param};
use burn::tensor::{DType, Tensor};

use crate::init::Init;
use crate::ops;

/// A causal convolution over frames, rows and columns, on a first frame: what is before it is zeros.
#[derive(Module, Debug)]
pub(super) struct CausalConv3d {
    /// `[out, in, frames, kernel, kernel]`
    weight: Param<Tensor<5>>,
    /// `[out]`
    bias: Param<Tensor<1>>,
}

impl CausalConv3d {
    /// A kernel as long in time as in space, of odd size; the output is as large as the input.
    pub(super) fn init(channels: [usize; 2], kernel: usize, init: &Init) -> Self {
        Self::init_shaped(channels, [kernel; 3], init)
    }

    /// `channels` are in and out; `kernel` is frames, height, width.
    pub(super) fn init_shaped(channels: [usize; 2], kernel: [usize; 3], init: &Init) -> Self {
        let ([from, to], [frames, height, width]) = (channels, kernel);
        Self {
            weight: init.fan_in([to, from, frames, height, width]),
            bias: init.zeros([to]),
        }
    }

    /// The float type that it computes in.
    pub(super) fn dtype(&self) -> DType {
        self.weight.val().dtype()
    }

    /// # Shapes
    /// * x: `[B, in, H, W]`
    /// * output: `[B, out, H, W]`
    pub(super) fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let weight = self.weight.val();
        let [to, from, frames, height, width] = weight.dims();
        let last = weight
            .narrow(2, frames - 1, 1)
            .reshape([to, from, height, width]);
        let (top, left) = (height / 2, width / 2);
        ops::conv2d(x, last, Some(self.bias.val()), 1, [top, left, top, left])
    }
}
