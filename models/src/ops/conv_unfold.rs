//! Convolution with any stride: the image unfolded into a matrix `[taps, pixels]`, then matrix products.

use rayon::prelude::*;

use super::conv::{Geometry, sum_over_images};
use super::product::{Matrix, MatrixMut, Onto, multiply};
use super::scratch;
use super::values::written;

/// `[B, O, H', W']` from `[B, C, H, W]`.
pub(crate) fn forward(
    size: &Geometry,
    x: &[f32],
    weight: &[f32],
    bias: Option<&[f32]>,
) -> Vec<f32> {
    let (taps, pixels) = (size.taps(), size.out_pixels());
    let weight = Matrix::new(weight, size.out_channels, taps);
    let out_len = size.out_channels * pixels;
    written(size.images * out_len, |y| {
        let images = y.par_chunks_mut(out_len.max(1));
        images
            .zip(x.par_chunks(size.image_len()))
            .for_each(|(y, x)| {
                scratch::with(taps * pixels, |columns| {
                    unfold(size, x, columns);
                    let columns = Matrix::new(columns, taps, pixels);
                    let product = MatrixMut::new(y, size.out_channels, pixels);
                    multiply(product, weight, columns, 1.0, Onto::Zero);
                });
                for (y, bias) in y.chunks_exact_mut(pixels).zip(bias.into_iter().flatten()) {
                    y.iter_mut().for_each(|y| *y += bias);
                }
            });
    })
}

/// The gradient of x.
pub(crate) fn input_grad(size: &Geometry, weight: &[f32], grad: &[f32]) -> Vec<f32> {
    let (taps, pixels) = (size.taps(), size.out_pixels());
    let weight = Matrix::new(weight, size.out_channels, taps);
    let out_len = size.out_channels * pixels;
    written(size.images * size.image_len(), |dx| {
        let images = dx.par_chunks_mut(size.image_len().max(1));
        images.zip(grad.par_chunks(out_len)).for_each(|(dx, grad)| {
            scratch::with(taps * pixels, |columns| {
                let grad = Matrix::new(grad, size.out_channels, pixels);
                let product = MatrixMut::new(columns, taps, pixels);
                multiply(product, weight.transposed(), grad, 1.0, Onto::Zero);
                fold(size, columns, dx);
            });
        });
    })
}

/// The gradient of the weight, `[O, C, kh, kw]`.
pub(crate) fn weight_grad(size: &Geometry, x: &[f32], grad: &[f32]) -> Vec<f32> {
    let (taps, pixels) = (size.taps(), size.out_pixels());
    let out_len = size.out_channels * pixels;
    sum_over_images(size.images, size.out_channels * taps, |image, sums| {
        scratch::with(taps * pixels, |columns| {
            unfold(
                size,
                &x[image * size.image_len()..][..size.image_len()],
                columns,
            );
            let grad = Matrix::new(
                &grad[image * out_len..][..out_len],
                size.out_channels,
                pixels,
            );
            let columns = Matrix::new(columns, taps, pixels);
            let product = MatrixMut::new(sums, size.out_channels, taps);
            multiply(product, grad, columns.transposed(), 1.0, Onto::Current);
        });
    })
}

/// Calls `visit(column, pixel, image)` for all taps of all output pixels that lie within the image.
fn for_each_tap(size: &Geometry, mut visit: impl FnMut(usize, usize)) {
    let [kernel_height, kernel_width] = size.kernel;
    let [top, left, ..] = size.padding;
    let (out_height, out_width) = (size.out_height(), size.out_width());
    for tap in 0..size.taps() {
        let (channel, in_kernel) = (
            tap / (kernel_height * kernel_width),
            tap % (kernel_height * kernel_width),
        );
        let (dy, dx) = (in_kernel / kernel_width, in_kernel % kernel_width);
        for out_y in 0..out_height {
            let Some(y) = (out_y * size.stride + dy)
                .checked_sub(top)
                .filter(|&y| y < size.height)
            else {
                continue;
            };
            let row = (channel * size.height + y) * size.width;
            let column = (tap * out_height + out_y) * out_width;
            for out_x in 0..out_width {
                let x = (out_x * size.stride + dx).wrapping_sub(left);
                if x < size.width {
                    visit(column + out_x, row + x);
                }
            }
        }
    }
}

fn unfold(size: &Geometry, image: &[f32], columns: &mut [f32]) {
    columns.fill(0.0);
    for_each_tap(size, |column, pixel| columns[column] = image[pixel]);
}

fn fold(size: &Geometry, columns: &[f32], image: &mut [f32]) {
    image.fill(0.0);
    for_each_tap(size, |column, pixel| image[pixel] += columns[column]);
}
