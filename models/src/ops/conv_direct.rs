//! Convolution with stride 1, straight from a padded copy of the image.
//!
//! In the padded image, flattened, every tap of the kernel is a constant distance away: output position `p` sums
//! `weight[k] * padded[p + offset[k]]`. Positions run on through the padding at the end of a row; what is computed there is dropped.

use std::ops::Range;

use rayon::prelude::*;

use super::conv::{Geometry, sum_over_images};
use super::heads::SharedHeads;
use super::product::{
    Matrix, MatrixMut, Onto, PANEL, Packed, Steps, Target, tile_height, tile_of_any_size,
};
use super::scratch;
use super::simd::{Simd, simd_fn};
use super::values::written;

/// Output positions of a task, about.
const TASK_POSITIONS: usize = 1024;

/// Multiply-adds below which one thread does it all.
const PARALLEL_MIN: usize = 1 << 19;

/// Depth of a block of the weight gradient: a packed panel of it stays in the first cache.
const DEPTH_BLOCK: usize = 256;

/// Some output rows of a convolution and the padded input rows they need.
struct Padded {
    /// Rows of the output.
    out_rows: usize,
    /// Row length of the padded image.
    width: usize,
    /// Rows of the padded part.
    rows: usize,
    channels: usize,
}

impl Padded {
    fn new(size: &Geometry, out_rows: usize) -> Self {
        let [_, left, _, right] = size.padding;
        Self {
            out_rows,
            width: size.width + left + right,
            rows: out_rows + size.kernel[0] - 1,
            channels: size.channels,
        }
    }

    /// Flattened output positions, those in the padding included.
    fn positions(&self) -> usize {
        self.out_rows * self.width
    }

    /// Room for the padded rows of all channels; whole vectors are read at the end.
    fn room(&self, size: &Geometry) -> usize {
        self.channels * self.rows * self.width + size.kernel[1] + 2 * PANEL
    }

    /// The distance of every tap.
    fn offsets(&self, size: &Geometry) -> Vec<usize> {
        let [kernel_height, kernel_width] = size.kernel;
        let mut offsets = Vec::with_capacity(size.taps());
        for channel in 0..self.channels {
            for y in 0..kernel_height {
                let row = (channel * self.rows + y) * self.width;
                offsets.extend((0..kernel_width).map(|x| row + x));
            }
        }
        offsets
    }

    /// Copies what output rows from `first` on need.
    fn copy(&self, size: &Geometry, image: &[f32], first: usize, padded: &mut [f32]) {
        let [top, left, ..] = size.padding;
        padded.fill(0.0);
        for channel in 0..self.channels {
            for row in 0..self.rows {
                let Some(y) = (first + row).checked_sub(top).filter(|&y| y < size.height) else {
                    continue;
                };
                let from = (channel * size.height + y) * size.width;
                let to = (channel * self.rows + row) * self.width + left;
                padded[to..to + size.width].copy_from_slice(&image[from..from + size.width]);
            }
        }
    }
}

/// A kernel with its weights as rows of taps.
struct Kernel<'a> {
    /// `[O, taps]`
    weight: &'a [f32],
    bias: Option<&'a [f32]>,
}

/// `[B, O, H', W']` from `[B, C, H, W]`.
pub(crate) fn forward(
    size: &Geometry,
    x: &[f32],
    weight: &[f32],
    bias: Option<&[f32]>,
) -> Vec<f32> {
    let (height, width) = (size.out_height(), size.out_width());
    let rows = (TASK_POSITIONS / width.max(1)).clamp(1, height.max(1));
    let tasks_per_image = height.div_ceil(rows);
    let kernel = Kernel { weight, bias };
    let dims = [size.images, size.out_channels, height, width];
    written(dims.iter().product(), |y| {
        let y = SharedHeads::separate(y, dims);
        let task = |index: usize| {
            let (image, first) = (index / tasks_per_image, index % tasks_per_image * rows);
            let rows = first..height.min(first + rows);
            let x = &x[image * size.image_len()..][..size.image_len()];
            convolve_rows(size, x, &kernel, rows, |channel, rows| {
                // SAFETY: no other task has these rows.
                unsafe { y.matrix(image, channel, rows) }
            });
        };
        let tasks = size.images * tasks_per_image;
        if dims.iter().product::<usize>() * size.taps() < PARALLEL_MIN {
            (0..tasks).for_each(task);
        } else {
            (0..tasks).into_par_iter().for_each(task);
        }
    })
}

/// Some output rows of one image; `output` gives room for rows of a channel.
fn convolve_rows<'a>(
    size: &Geometry,
    image: &[f32],
    kernel: &Kernel,
    rows: Range<usize>,
    output: impl Fn(usize, Range<usize>) -> MatrixMut<'a>,
) {
    let padded = Padded::new(size, rows.len());
    let stride = padded.positions().next_multiple_of(PANEL);
    let room = [padded.room(size), size.out_channels * stride];
    scratch::split(room, |[image_rows, sums]| {
        padded.copy(size, image, rows.start, image_rows);
        convolve(
            image_rows,
            kernel.weight,
            &padded.offsets(size),
            sums,
            stride,
        );
        for channel in 0..size.out_channels {
            let bias = kernel.bias.map_or(0.0, |bias| bias[channel]);
            let mut output = output(channel, rows.clone());
            for row in 0..rows.len() {
                let sums = &sums[channel * stride + row * padded.width..];
                let out = output.row(row);
                out.iter_mut()
                    .zip(sums)
                    .for_each(|(out, sum)| *out = sum + bias);
            }
        }
    });
}

simd_fn! {
    /// `sums[o][p] = weight[o] . padded[p + offsets]` for all rows of sums, `stride` apart.
    fn convolve(padded: &[f32], weight: &[f32], offsets: &[usize], sums: &mut [f32], stride: usize) = convolve_kernel;
    /// `sums[k][o] += padded[offsets[k] + p] * grads[p][o]` over some positions p.
    fn correlate(padded: &[f32], offsets: &[usize], grads: Packed, sums: &mut MatrixMut) = correlate_kernel;
}

#[inline(always)]
fn convolve_kernel<S: Simd>(
    s: S,
    padded: &[f32],
    weight: &[f32],
    offsets: &[usize],
    sums: &mut [f32],
    stride: usize,
) {
    let taps = offsets.len();
    let (width, channels) = (2 * S::LANES, weight.len() / taps);
    assert!(stride.is_multiple_of(width) && sums.len() >= channels * stride);
    assert!(
        offsets
            .iter()
            .max()
            .is_none_or(|last| last + stride <= padded.len())
    );
    for position in (0..stride).step_by(width) {
        let at = padded.as_ptr().wrapping_add(position);
        let mut channel = 0;
        while channel < channels {
            let rows = tile_height::<S>(channels - channel);
            let steps = Steps {
                a: |i: usize| weight.as_ptr().wrapping_add((channel + i) * taps),
                a_step: 1,
                b: |step: usize| at.wrapping_add(offsets[step]),
                depth: taps,
            };
            let to = Target {
                data: sums.as_mut_ptr().wrapping_add(channel * stride + position),
                rows,
                width,
                row_stride: stride,
                column_stride: 1,
                alpha: 1.0,
                onto: Onto::Zero,
            };
            // SAFETY: the farthest tap of the last position lies within `padded`, the tile within `sums`.
            unsafe { tile_of_any_size(s, &steps, &to) };
            channel += rows;
        }
    }
}

/// Whether [`input_grad`] covers this padding.
pub(crate) fn has_input_grad(size: &Geometry) -> bool {
    let [top, left, bottom, right] = size.padding;
    top.max(bottom) < size.kernel[0] && left.max(right) < size.kernel[1]
}

/// The gradient of x: the gradient of y convolved with the kernel turned round.
pub(crate) fn input_grad(size: &Geometry, weight: &[f32], grad: &[f32]) -> Vec<f32> {
    let [kernel_height, kernel_width] = size.kernel;
    let area = kernel_height * kernel_width;
    let [top, left, bottom, right] = size.padding;
    let turned_size = Geometry {
        channels: size.out_channels,
        height: size.out_height(),
        width: size.out_width(),
        out_channels: size.channels,
        padding: [
            kernel_height - 1 - top,
            kernel_width - 1 - left,
            kernel_height - 1 - bottom,
            kernel_width - 1 - right,
        ],
        ..*size
    };
    let mut turned = Vec::with_capacity(weight.len());
    for channel in 0..size.channels {
        for out_channel in 0..size.out_channels {
            let kernel = &weight[(out_channel * size.channels + channel) * area..][..area];
            turned.extend(kernel.iter().rev());
        }
    }
    forward(&turned_size, grad, &turned, None)
}

/// The gradient of the weight, `[O, C, kh, kw]`.
pub(crate) fn weight_grad(size: &Geometry, x: &[f32], grad: &[f32]) -> Vec<f32> {
    let (taps, channels) = (size.taps(), size.out_channels);
    let sums = sum_over_images(size.images, taps * channels, |image, sums| {
        let x = &x[image * size.image_len()..][..size.image_len()];
        let out_len = channels * size.out_pixels();
        let grad = &grad[image * out_len..][..out_len];
        add_weight_grad(size, x, grad, MatrixMut::new(sums, taps, channels));
    });
    written(taps * channels, |out| {
        for (channel, out) in out.chunks_exact_mut(taps).enumerate() {
            let sums = sums[channel..].iter().step_by(channels);
            out.iter_mut().zip(sums).for_each(|(out, sum)| *out = *sum);
        }
    })
}

/// Adds one image's part to `[taps, O]`.
fn add_weight_grad(size: &Geometry, image: &[f32], grad: &[f32], mut sums: MatrixMut) {
    let (height, width) = (size.out_height(), size.out_width());
    let rows_per_part = (TASK_POSITIONS / width.max(1)).clamp(1, height.max(1));
    for first in (0..height).step_by(rows_per_part) {
        let padded = Padded::new(size, rows_per_part.min(height - first));
        let positions = padded.positions();
        let room = [
            padded.room(size),
            Packed::room(positions, size.out_channels),
        ];
        scratch::split(room, |[image_rows, for_grads]| {
            padded.copy(size, image, first, image_rows);
            let blocks = (0..padded.out_rows).map(|y| {
                let rows = &grad[(first + y) * width..];
                let (dims, strides) = ([width, size.out_channels], [1, height * width]);
                (y * padded.width, Matrix::strided(rows, dims, strides))
            });
            let grads = Packed::of_blocks(for_grads, positions, size.out_channels, blocks);
            correlate(image_rows, &padded.offsets(size), grads, &mut sums);
        });
    }
}

#[inline(always)]
fn correlate_kernel<S: Simd>(
    s: S,
    padded: &[f32],
    offsets: &[usize],
    grads: Packed,
    sums: &mut MatrixMut,
) {
    let last = offsets.iter().max().copied().unwrap_or(0);
    assert!(last + grads.depth <= padded.len());
    assert!(sums.rows == offsets.len() && sums.columns == grads.columns);
    for start in (0..grads.depth).step_by(DEPTH_BLOCK) {
        let depth = DEPTH_BLOCK.min(grads.depth - start);
        for column in (0..grads.columns).step_by(2 * S::LANES) {
            let panel = grads.at(column / PANEL, start).wrapping_add(column % PANEL);
            let mut row = 0;
            while row < offsets.len() {
                let rows = tile_height::<S>(offsets.len() - row);
                let steps = Steps {
                    a: |i: usize| padded.as_ptr().wrapping_add(offsets[row + i] + start),
                    a_step: 1,
                    b: |step: usize| panel.wrapping_add(step.wrapping_mul(PANEL)),
                    depth,
                };
                let to = Target {
                    data: sums.at(row, column),
                    rows,
                    width: (2 * S::LANES).min(grads.columns - column),
                    row_stride: sums.row_stride,
                    column_stride: 1,
                    alpha: 1.0,
                    onto: Onto::Current,
                };
                // SAFETY: all taps of these positions lie within `padded`, the tile within `sums`.
                unsafe { tile_of_any_size(s, &steps, &to) };
                row += rows;
            }
        }
    }
}
