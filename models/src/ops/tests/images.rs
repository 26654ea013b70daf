//! Convolutions and group norms.

use burn::prelude::*;

use super::check;
use crate::ops::{self, plain};

struct Case {
    images: usize,
    channels: usize,
    out_channels: usize,
    size: [usize; 2],
    kernel: usize,
    stride: usize,
    padding: [usize; 4],
}

impl Case {
    fn check(&self) {
        let [height, width] = self.size;
        let kernel = self.kernel;
        type Conv = fn(Tensor<4>, Tensor<4>, Option<Tensor<1>>, usize, [usize; 4]) -> Tensor<4>;
        let run = |conv: Conv, x: &[Tensor<1>]| {
            let weight = x[1]
                .clone()
                .reshape([self.out_channels, self.channels, kernel, kernel]);
            let image = x[0]
                .clone()
                .reshape([self.images, self.channels, height, width]);
            conv(image, weight, x.get(2).cloned(), self.stride, self.padding).flatten::<1>(0, 3)
        };
        let lens = [
            self.images * self.channels * height * width,
            self.out_channels * self.channels * kernel * kernel,
            self.out_channels,
        ];
        for lens in [&lens[..2], &lens] {
            let name = format!("conv2d {self_size:?} k{kernel}", self_size = self.size);
            check(&name, lens, &|x| run(ops::conv2d, x), &|x| {
                run(plain::conv2d, x)
            });
        }
    }
}

#[test]
fn same_convolutions_agree() {
    let sizes = [[1, 1], [5, 3], [8, 8], [33, 17], [64, 64]];
    for ((channels, out_channels), size) in [(1, 1), (3, 5), (16, 32), (7, 13), (4, 3)]
        .into_iter()
        .zip(sizes)
    {
        for (kernel, padding) in [(1, 0), (3, 1)] {
            Case {
                images: 2,
                channels,
                out_channels,
                size,
                kernel,
                stride: 1,
                padding: [padding; 4],
            }
            .check();
        }
    }
}

#[test]
fn uneven_padding_agrees() {
    for stride in [1, 2, 3] {
        for padding in [[0, 0, 1, 1], [2, 0, 1, 3], [0; 4]] {
            Case {
                images: 3,
                channels: 5,
                out_channels: 9,
                size: [12, 11],
                kernel: 3,
                stride,
                padding,
            }
            .check();
        }
    }
}

#[test]
fn strided_convolutions_agree() {
    Case {
        images: 17,
        channels: 4,
        out_channels: 6,
        size: [16, 16],
        kernel: 2,
        stride: 2,
        padding: [0; 4],
    }
    .check();
}

#[test]
fn many_images_agree() {
    Case {
        images: 37,
        channels: 3,
        out_channels: 4,
        size: [6, 6],
        kernel: 3,
        stride: 1,
        padding: [1; 4],
    }
    .check();
}

#[test]
fn group_norms_agree() {
    for ([images, channels, height, width], groups) in [
        ([1, 1, 1, 2], 1),
        ([2, 6, 5, 3], 3),
        ([3, 16, 16, 16], 4),
        ([2, 8, 9, 7], 8),
    ] {
        type Norm = fn(Tensor<4>, Tensor<1>, Tensor<1>, usize, f64) -> Tensor<4>;
        let run = |norm: Norm, x: &[Tensor<1>]| {
            let image = x[0].clone().reshape([images, channels, height, width]);
            norm(image, x[1].clone(), x[2].clone(), groups, 1e-6).flatten::<1>(0, 3)
        };
        let lens = [images * channels * height * width, channels, channels];
        check("group_norm", &lens, &|x| run(ops::group_norm, x), &|x| {
            run(plain::group_norm, x)
        });
        check(
            "group_norm_silu",
            &lens,
            &|x| run(ops::group_norm_silu, x),
            &|x| plain::silu(run(plain::group_norm, x)),
        );
    }
}
