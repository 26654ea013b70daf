//! Two-dimensional convolution.

use burn::prelude::*;
use burn_flex::FlexTensor;
use rayon::prelude::*;

use super::conv_direct;
use super::conv_unfold;
use super::fused::{self, Flex, FusedOp};
use super::plain;
use super::simd::{Simd, simd_fn};
use super::values::{dense, dims, tensor, tensor_like, values};

/// Two-dimensional convolution with zero padding.
///
/// # Shapes
/// - x: `[B, C, H, W]`, weight: `[O, C, kh, kw]`, bias: `[O]`
/// - padding: top, left, bottom, right
/// - output: `[B, O, (H + top + bottom - kh) / stride + 1, (W + left + right - kw) / stride + 1]`
pub fn conv2d(
    x: Tensor<4>,
    weight: Tensor<4>,
    bias: Option<Tensor<1>>,
    stride: usize,
    padding: [usize; 4],
) -> Tensor<4> {
    let [out_channels, channels, ..] = weight.dims();
    assert_eq!(x.dims()[1], channels, "a weight is [O, C, kh, kw]");
    let op = Conv { stride, padding };
    let inputs = [x.into_dispatch(), weight.into_dispatch()];
    let Some(bias) = bias else {
        return match fused::apply_on_cpu(op, inputs) {
            Ok(y) => Tensor::from_dispatch(y),
            Err([x, weight]) => {
                let (x, weight) = (Tensor::from_dispatch(x), Tensor::from_dispatch(weight));
                plain::conv2d(x, weight, None, stride, padding)
            }
        };
    };
    assert_eq!(bias.dims(), [out_channels], "one bias per output channel");
    let [x, weight] = inputs;
    match fused::apply_on_cpu(op, [x, weight, bias.into_dispatch()]) {
        Ok(y) => Tensor::from_dispatch(y),
        Err([x, weight, bias]) => {
            let (x, weight) = (Tensor::from_dispatch(x), Tensor::from_dispatch(weight));
            let bias = Some(Tensor::from_dispatch(bias));
            plain::conv2d(x, weight, bias, stride, padding)
        }
    }
}

/// Inputs: x, weight and, if there are three, bias.
#[derive(Clone, Debug)]
struct Conv {
    stride: usize,
    padding: [usize; 4],
}

/// The sizes of a convolution.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Geometry {
    pub(crate) images: usize,
    pub(crate) channels: usize,
    pub(crate) height: usize,
    pub(crate) width: usize,
    pub(crate) out_channels: usize,
    pub(crate) kernel: [usize; 2],
    pub(crate) stride: usize,
    /// Top, left, bottom, right.
    pub(crate) padding: [usize; 4],
}

impl Geometry {
    pub(crate) fn out_height(&self) -> usize {
        let [top, _, bottom, _] = self.padding;
        (self.height + top + bottom - self.kernel[0]) / self.stride + 1
    }

    pub(crate) fn out_width(&self) -> usize {
        let [_, left, _, right] = self.padding;
        (self.width + left + right - self.kernel[1]) / self.stride + 1
    }

    /// Numbers that one output number is a sum over.
    pub(crate) fn taps(&self) -> usize {
        self.channels * self.kernel[0] * self.kernel[1]
    }

    /// Pixels of an output channel.
    pub(crate) fn out_pixels(&self) -> usize {
        self.out_height() * self.out_width()
    }

    /// Numbers of an input image.
    pub(crate) fn image_len(&self) -> usize {
        self.channels * self.height * self.width
    }
}

impl Conv {
    fn geometry(&self, x: &FlexTensor, weight: &FlexTensor) -> Geometry {
        let [images, channels, height, width] = dims(x);
        let [out_channels, _, kernel_height, kernel_width] = dims(weight);
        Geometry {
            images,
            channels,
            height,
            width,
            out_channels,
            kernel: [kernel_height, kernel_width],
            stride: self.stride,
            padding: self.padding,
        }
    }
}

impl<const N: usize> FusedOp<Flex, N> for Conv {
    type Saved = [FlexTensor; N];

    fn forward(&self, inputs: [FlexTensor; N], _: [bool; N]) -> (FlexTensor, Self::Saved) {
        let inputs = inputs.map(dense);
        let size = self.geometry(&inputs[0], &inputs[1]);
        let (x, weight) = (values(&inputs[0]), values(&inputs[1]));
        let bias = inputs.get(2).map(values);
        let y = match self.stride {
            // Neighbouring outputs read neighbouring inputs: no taps are copied. A larger stride leaves gaps.
            1 => conv_direct::forward(&size, x, weight, bias),
            _ => conv_unfold::forward(&size, x, weight, bias),
        };
        let shape = [
            size.images,
            size.out_channels,
            size.out_height(),
            size.out_width(),
        ];
        (tensor(y, shape), inputs)
    }

    fn backward(
        &self,
        inputs: Self::Saved,
        grad: FlexTensor,
        tracked: [bool; N],
    ) -> [Option<FlexTensor>; N] {
        let grad = dense(grad);
        let size = self.geometry(&inputs[0], &inputs[1]);
        let (x, weight, grad) = (values(&inputs[0]), values(&inputs[1]), values(&grad));
        std::array::from_fn(|i| {
            tracked[i].then(|| {
                let gradient = match (i, self.stride) {
                    (0, 1) if conv_direct::has_input_grad(&size) => {
                        conv_direct::input_grad(&size, weight, grad)
                    }
                    (0, _) => conv_unfold::input_grad(&size, weight, grad),
                    (1, 1) => conv_direct::weight_grad(&size, x, grad),
                    (1, _) => conv_unfold::weight_grad(&size, x, grad),
                    _ => bias_grad(&size, grad),
                };
                tensor_like(gradient, &inputs[i])
            })
        })
    }
}

fn bias_grad(size: &Geometry, grad: &[f32]) -> Vec<f32> {
    let of_channel = |channel: usize| -> f32 {
        let channels = grad.chunks_exact(size.out_pixels());
        channels
            .skip(channel)
            .step_by(size.out_channels)
            .map(sum)
            .sum()
    };
    (0..size.out_channels)
        .into_par_iter()
        .map(of_channel)
        .collect()
}

simd_fn! {
    fn sum(x: &[f32]) -> f32 = sum_kernel;
}

#[inline(always)]
fn sum_kernel<S: Simd>(s: S, x: &[f32]) -> f32 {
    s.zip_sum([x], |[x]| x)
}

/// How many groups of images have their weight gradients summed apart; fixed, so that sums do not depend on threads.
const IMAGE_GROUPS: usize = 16;

/// Sums `add(image, sum)` over the images, in an order that depends on their number alone.
pub(crate) fn sum_over_images(
    images: usize,
    len: usize,
    add: impl Fn(usize, &mut [f32]) + Sync,
) -> Vec<f32> {
    let per_group = images.div_ceil(IMAGE_GROUPS).max(1);
    let groups = images.div_ceil(per_group);
    let mut sums = vec![0.0; groups.max(1) * len];
    sums.par_chunks_mut(len.max(1))
        .take(groups)
        .enumerate()
        .for_each(|(group, sum)| {
            let first = group * per_group;
            (first..images.min(first + per_group)).for_each(|image| add(image, sum));
        });
    let (total, others) = sums.split_at_mut(len);
    for sum in others.chunks(len.max(1)) {
        total.iter_mut().zip(sum).for_each(|(total, x)| *total += x);
    }
    sums.truncate(len);
    sums
}
