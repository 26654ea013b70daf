//! Group normalisation over channels and space, alone and followed by SiLU.

use burn::prelude::*;
use burn_flex::FlexTensor;
use rayon::prelude::*;

use super::fused::{self, Flex, FusedOp};
use super::plain;
use super::simd::{Simd, simd_fn};
use super::values::{dense, tensor_like, values, written};

/// Normalises each of `groups` groups of channels over channels and space.
///
/// # Shapes
/// - x and output: `[B, C, ...]`
/// - weight, bias: `[C]`
pub fn group_norm<const D: usize>(
    x: Tensor<D>,
    weight: Tensor<1>,
    bias: Tensor<1>,
    groups: usize,
    eps: f64,
) -> Tensor<D> {
    normalize(x, weight, bias, eps, groups, After::Nothing)
}

/// `silu(group_norm(x))`.
///
/// # Shapes
/// As [`group_norm`].
pub fn group_norm_silu<const D: usize>(
    x: Tensor<D>,
    weight: Tensor<1>,
    bias: Tensor<1>,
    groups: usize,
    eps: f64,
) -> Tensor<D> {
    normalize(x, weight, bias, eps, groups, After::Silu)
}

fn normalize<const D: usize>(
    x: Tensor<D>,
    weight: Tensor<1>,
    bias: Tensor<1>,
    eps: f64,
    groups: usize,
    after: After,
) -> Tensor<D> {
    let channels = x.dims()[1];
    assert_eq!(
        channels % groups,
        0,
        "{channels} channels do not make {groups} groups"
    );
    assert_eq!(weight.dims(), [channels], "one weight per channel");
    assert_eq!(bias.dims(), [channels], "one bias per channel");
    let op = GroupNorm {
        groups,
        eps: eps as f32,
        after,
    };
    let inputs = [
        x.into_dispatch(),
        weight.into_dispatch(),
        bias.into_dispatch(),
    ];
    match fused::apply(op, inputs) {
        Ok(y) => Tensor::from_dispatch(y),
        Err([x, weight, bias]) => {
            let (weight, bias) = (Tensor::from_dispatch(weight), Tensor::from_dispatch(bias));
            let y = plain::group_norm(Tensor::from_dispatch(x), weight, bias, groups, eps);
            match after {
                After::Nothing => y,
                After::Silu => plain::silu(y),
            }
        }
    }
}

/// What is done to the normalised values.
#[derive(Clone, Copy, Debug)]
pub(super) enum After {
    Nothing,
    Silu,
}

/// Inputs: x, weight, bias.
#[derive(Clone, Debug)]
pub(super) struct GroupNorm {
    pub(super) groups: usize,
    pub(super) eps: f32,
    pub(super) after: After,
}

/// One group of one image: some channels of `space` numbers each.
struct Group<'a> {
    x: &'a [f32],
    weight: &'a [f32],
    bias: &'a [f32],
    space: usize,
    eps: f32,
    after: After,
}

/// Numbers below which one thread does it all.
const PARALLEL_MIN: usize = 1 << 14;

impl GroupNorm {
    /// Numbers of a group of one image, and channels of a group.
    fn sizes(&self, inputs: &[FlexTensor; 3]) -> (usize, usize) {
        let shape = inputs[0].layout().shape();
        let images = shape[0].max(1);
        let members = values(&inputs[0]).len() / (images * self.groups);
        (members, shape[1] / self.groups)
    }

    fn group<'a>(&self, inputs: &'a [FlexTensor; 3], index: usize) -> Group<'a> {
        let (members, channels) = self.sizes(inputs);
        let [x, weight, bias] = inputs.each_ref().map(values);
        let first = index % self.groups * channels;
        Group {
            x: &x[index * members..][..members],
            weight: &weight[first..][..channels],
            bias: &bias[first..][..channels],
            space: members / channels,
            eps: self.eps,
            after: self.after,
        }
    }
}

impl FusedOp<Flex, 3> for GroupNorm {
    type Saved = [FlexTensor; 3];

    fn forward(&self, inputs: [FlexTensor; 3], _: [bool; 3]) -> (FlexTensor, Self::Saved) {
        let inputs = inputs.map(dense);
        let (members, _) = self.sizes(&inputs);
        let y = written(values(&inputs[0]).len(), |y| {
            for_each_chunk(y, members, |index, y| {
                forward_group(&self.group(&inputs, index), y)
            });
        });
        (tensor_like(y, &inputs[0]), inputs)
    }

    fn backward(
        &self,
        inputs: Self::Saved,
        grad: FlexTensor,
        tracked: [bool; 3],
    ) -> [Option<FlexTensor>; 3] {
        let grad = dense(grad);
        let (members, channels) = self.sizes(&inputs);
        let images = inputs[0].layout().shape()[0];
        // For every channel of every image, the gradients of its bias and its weight.
        let mut sums = vec![0.0; images * self.groups * channels * 2];
        let dx = written(values(&grad).len(), |dx| {
            let parts = dx.par_chunks_mut(members.max(1));
            let parts = parts.zip(sums.par_chunks_mut(channels * 2));
            parts.enumerate().for_each(|(index, (dx, sums))| {
                let grad = &values(&grad)[index * members..][..members];
                backward_group(&self.group(&inputs, index), grad, dx, sums);
            });
        });
        let per_channel = |part: usize| {
            let mut total = vec![0.0; self.groups * channels];
            for image in sums.chunks_exact(2 * total.len()) {
                for (total, pair) in total.iter_mut().zip(image.chunks_exact(2)) {
                    *total += pair[part];
                }
            }
            total
        };
        [
            tracked[0].then(|| tensor_like(dx, &inputs[0])),
            tracked[1].then(|| tensor_like(per_channel(1), &inputs[1])),
            tracked[2].then(|| tensor_like(per_channel(0), &inputs[2])),
        ]
    }
}

fn for_each_chunk(values: &mut [f32], len: usize, work: impl Fn(usize, &mut [f32]) + Sync) {
    let each = |(index, chunk): (usize, &mut [f32])| work(index, chunk);
    if values.len() < PARALLEL_MIN {
        values.chunks_mut(len.max(1)).enumerate().for_each(each);
    } else {
        values.par_chunks_mut(len).enumerate().for_each(each);
    }
}

simd_fn! {
    fn forward_group(group: &Group, y: &mut [f32]) = forward_kernel;
    /// `sums` becomes the gradients of bias and weight of each channel, in pairs.
    fn backward_group(group: &Group, grad: &[f32], dx: &mut [f32], sums: &mut [f32]) = backward_kernel;
}

impl Group<'_> {
    /// Mean, and one over the deviation.
    #[inline(always)]
    fn statistics<S: Simd>(&self, s: S) -> (f32, f32) {
        let count = self.x.len() as f32;
        let mean = s.zip_sum([self.x], |[x]| x) / count;
        let variance = s.centered_squares(self.x, mean) / count;
        (mean, 1.0 / (variance + self.eps).sqrt())
    }

    /// Channels: index and range in the group.
    fn channels(&self) -> impl Iterator<Item = (usize, std::ops::Range<usize>)> {
        let space = self.space;
        (0..self.weight.len()).map(move |c| (c, c * space..(c + 1) * space))
    }
}

#[inline(always)]
fn forward_kernel<S: Simd>(s: S, group: &Group, y: &mut [f32]) {
    let (mean, scale) = group.statistics(s);
    for (c, range) in group.channels() {
        let factor = scale * group.weight[c];
        let offset = s.splat(group.bias[c] - mean * factor);
        let factor = s.splat(factor);
        let (x, y) = (&group.x[range.clone()], &mut y[range]);
        match group.after {
            After::Nothing => s.zip_map([x], y, |[x]| s.mul_add(x, factor, offset)),
            After::Silu => s.zip_map([x], y, |[x]| {
                let y = s.mul_add(x, factor, offset);
                s.mul(y, s.sigmoid(y))
            }),
        }
    }
}

/// With `n` the normal values and `d` the gradient times the weight: `(d - mean(d) - n mean(d n)) / deviation`.
#[inline(always)]
fn backward_kernel<S: Simd>(s: S, group: &Group, grad: &[f32], dx: &mut [f32], sums: &mut [f32]) {
    let (mean, scale) = group.statistics(s);
    let (mut level, mut along) = (0.0, 0.0);
    for (c, range) in group.channels() {
        let (x, grad, dx) = (
            &group.x[range.clone()],
            &grad[range.clone()],
            &mut dx[range],
        );
        before_activation(s, group, [mean, scale], c, [x, grad], dx);
        let bias = s.zip_sum([dx], |[d]| d);
        let with_x = s.zip_sum([dx, x], |[d, x]| s.mul(d, x));
        let weight = (with_x - mean * bias) * scale;
        (sums[2 * c], sums[2 * c + 1]) = (bias, weight);
        level += bias * group.weight[c];
        along += weight * group.weight[c];
    }
    let count = group.x.len() as f32;
    let (level, along) = (s.splat(level / count), s.splat(along / count));
    for (c, range) in group.channels() {
        let (mean, scale) = (s.splat(mean), s.splat(scale));
        let weight = s.splat(group.weight[c]);
        s.accumulate([&group.x[range.clone()]], &mut dx[range], |[x], d| {
            let normal = s.mul(s.sub(x, mean), scale);
            let rest = s.sub(s.mul(d, weight), s.mul_add(normal, along, level));
            s.mul(scale, rest)
        });
    }
}

/// `out` becomes the gradient before the activation of channel `c`.
#[inline(always)]
fn before_activation<S: Simd>(
    s: S,
    group: &Group,
    [mean, scale]: [f32; 2],
    c: usize,
    [x, grad]: [&[f32]; 2],
    out: &mut [f32],
) {
    let After::Silu = group.after else {
        return out.copy_from_slice(grad);
    };
    let factor = scale * group.weight[c];
    let offset = s.splat(group.bias[c] - mean * factor);
    let (factor, one) = (s.splat(factor), s.splat(1.0));
    s.zip_map([x, grad], out, |[x, grad]| {
        let y = s.mul_add(x, factor, offset);
        let gate = s.sigmoid(y);
        // silu' = gate + y gate (1 - gate)
        let slope = s.mul(gate, s.mul_add(y, s.sub(one, gate), one));
        s.mul(grad, slope)
    });
}
