use burn::module::{Module, Param};
use burn::tensor::Tensor;

use crate::init::Init;
use crate::ops;

/// A two-dimensional convolution with zero padding.
#[derive(Module, Debug)]
pub struct Conv2d {
    /// `[out, in, kernel, kernel]`
    pub weight: Param<Tensor<4>>,
    /// `[out]`
    pub bias: Param<Tensor<1>>,
    stride: usize,
    padding: [usize; 4],
}

impl Conv2d {
    /// A square kernel of odd size whose output is as large as its input.
    pub fn init_same(channels: [usize; 2], kernel: usize, init: &Init) -> Self {
        Self::init(channels, kernel, 1, [kernel / 2; 4], init)
    }

    /// `channels` are in and out; `padding` is top, left, bottom, right.
    pub fn init(
        channels: [usize; 2],
        kernel: usize,
        stride: usize,
        padding: [usize; 4],
        init: &Init,
    ) -> Self {
        let [in_channels, out_channels] = channels;
        Self {
            weight: init.fan_in([out_channels, in_channels, kernel, kernel]),
            bias: init.zeros([out_channels]),
            stride,
            padding,
        }
    }

    /// # Shapes
    /// * x: `[B, in, H, W]`
    /// * output: `[B, out, H', W']`
    pub fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let (weight, bias) = (self.weight.val(), self.bias.val());
        ops::conv2d(x, weight, Some(bias), self.stride, self.padding)
    }
}
