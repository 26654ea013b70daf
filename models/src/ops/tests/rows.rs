//! Activations, norms, rope, gates and linear layers.

use burn::prelude::*;

use super::{check, check_tracked};
use crate::ops::{self, plain};

#[test]
fn activations_agree() {
    for len in [5, 64, 40_007] {
        check(
            "gelu_tanh",
            &[len],
            &|x| ops::gelu_tanh(x[0].clone()),
            &|x| plain::gelu_tanh(x[0].clone()),
        );
        check("gelu_erf", &[len], &|x| ops::gelu_erf(x[0].clone()), &|x| {
            plain::gelu_erf(x[0].clone())
        });
        check(
            "quick_gelu",
            &[len],
            &|x| ops::quick_gelu(x[0].clone()),
            &|x| plain::quick_gelu(x[0].clone()),
        );
        check("silu", &[len], &|x| ops::silu(x[0].clone()), &|x| {
            plain::silu(x[0].clone())
        });
    }
}

#[test]
fn activations_saturate() {
    let device = Device::flex();
    let x = || Tensor::<1>::from_floats([-200.0, -30.0, 0.0, 30.0, 200.0], &device);
    for activation in [
        ops::gelu_tanh::<1>,
        ops::gelu_erf,
        ops::quick_gelu,
        ops::silu,
    ] {
        let y = super::host(activation(x()));
        assert!(
            y[0].abs() < 1e-6 && y[1].abs() < 1e-6 && y[2] == 0.0,
            "{y:?}"
        );
        assert!(y[3] == 30.0 && y[4] == 200.0, "{y:?}");
    }
}

#[test]
fn gated_activations_agree() {
    for len in [7, 20_000] {
        let fused = |x: &[Tensor<1>]| ops::silu_mul(x[0].clone(), x[1].clone());
        check("silu_mul", &[len, len], &fused, &|x| {
            plain::silu(x[0].clone()) * x[1].clone()
        });
        let fused = |x: &[Tensor<1>]| ops::gelu_tanh_mul(x[0].clone(), x[1].clone());
        check("gelu_tanh_mul", &[len, len], &fused, &|x| {
            plain::gelu_tanh(x[0].clone()) * x[1].clone()
        });
    }
}

/// Batch, length, features.
const ROWS: [[usize; 3]; 4] = [[1, 1, 3], [2, 5, 17], [3, 150, 128], [2, 70, 200]];

#[test]
fn layer_norm_agrees() {
    for dims in ROWS {
        let [b, s, d] = dims;
        type Norm = fn(Tensor<3>, Option<Tensor<1>>, Option<Tensor<1>>, f64) -> Tensor<3>;
        let run = |norm: Norm, x: &[Tensor<1>]| {
            let weight = x.get(1).cloned();
            let bias = x.get(2).cloned();
            norm(x[0].clone().reshape(dims), weight, bias, 1e-6).flatten::<1>(0, 2)
        };
        for lens in [&[b * s * d][..], &[b * s * d, d], &[b * s * d, d, d]] {
            check("layer_norm", lens, &|x| run(ops::layer_norm, x), &|x| {
                run(plain::layer_norm, x)
            });
        }
    }
}

#[test]
fn layer_norm_survives_a_large_mean() {
    let device = Device::flex();
    let x = Tensor::<1>::from_floats([1000.0, 1001.0, 1002.0, 1003.0], &device).reshape([1, 4]);
    let y = super::host(ops::layer_norm::<2>(x, None, None, 0.0).flatten(0, 1));
    for (y, expected) in y.iter().zip([-1.341_641, -0.447_214, 0.447_214, 1.341_641]) {
        assert!((y - expected).abs() < 1e-4, "{y} instead of {expected}");
    }
}

#[test]
fn rms_norm_agrees() {
    for dims in ROWS {
        let [b, s, d] = dims;
        type Norm = fn(Tensor<3>, Tensor<1>, f64) -> Tensor<3>;
        let run = |norm: Norm, x: &[Tensor<1>]| {
            norm(x[0].clone().reshape(dims), x[1].clone(), 1e-5).flatten::<1>(0, 2)
        };
        check(
            "rms_norm",
            &[b * s * d, d],
            &|x| run(ops::rms_norm, x),
            &|x| run(plain::rms_norm, x),
        );
    }
}

#[test]
fn layer_norm_modulate_agrees() {
    for dims in ROWS {
        let [b, s, d] = dims;
        type Norm = fn(Tensor<3>, Tensor<3>, Tensor<3>, f64) -> Tensor<3>;
        let run = |norm: Norm, x: &[Tensor<1>]| {
            let [shift, scale] = [1, 2].map(|i| x[i].clone().reshape([b, 1, d]));
            norm(x[0].clone().reshape(dims), shift, scale, 1e-6).flatten::<1>(0, 2)
        };
        check(
            "layer_norm_modulate",
            &[b * s * d, b * d, b * d],
            &|x| run(ops::layer_norm_modulate, x),
            &|x| run(plain::layer_norm_modulate, x),
        );
    }
}

#[test]
fn gate_add_agrees() {
    for dims in ROWS {
        let [b, s, d] = dims;
        type Gate = fn(Tensor<3>, Tensor<3>, Tensor<3>) -> Tensor<3>;
        let apply = |gate_add: Gate, inputs: &[Tensor<1>]| {
            let [x, y] = [0, 1].map(|i| inputs[i].clone().reshape(dims));
            gate_add(x, y, inputs[2].clone().reshape([b, 1, d])).flatten::<1>(0, 2)
        };
        check(
            "gate_add",
            &[b * s * d, b * s * d, b * d],
            &|x| apply(ops::gate_add, x),
            &|x| apply(plain::gate_add, x),
        );
    }
}

#[test]
fn rms_norm_rope_agrees() {
    for [b, s, heads, width] in [[1, 1, 1, 2], [2, 5, 3, 6], [2, 150, 4, 32], [1, 33, 2, 64]] {
        type Rope = fn(Tensor<3>, Tensor<1>, Tensor<2>, Tensor<2>, usize, f64) -> Tensor<4>;
        let run = |rope: Rope, x: &[Tensor<1>]| {
            let [cos, sin] = [2, 3].map(|i| x[i].clone().reshape([s, width / 2]));
            let x3 = x[0].clone().reshape([b, s, heads * width]);
            rope(x3, x[1].clone(), cos, sin, heads, 1e-6)
        };
        let lens = [b * s * heads * width, width, s * width / 2, s * width / 2];
        let trackable = [true, true, false, false];
        check_tracked(
            "rms_norm_rope",
            &lens,
            &trackable,
            &|x| run(ops::rms_norm_rope, x).flatten(0, 3),
            &|x| run(plain::rms_norm_rope, x).flatten(0, 3),
        );
        // A gradient that comes in another order of memory.
        check_tracked(
            "rms_norm_rope, transposed",
            &lens,
            &trackable,
            &|x| run(ops::rms_norm_rope, x).swap_dims(1, 2).reshape([-1]),
            &|x| run(plain::rms_norm_rope, x).swap_dims(1, 2).reshape([-1]),
        );
    }
}

#[test]
fn rope_half_agrees() {
    for [b, heads, s, width, tables] in [[1, 1, 1, 2, 1], [2, 3, 5, 6, 2], [2, 4, 50, 64, 1]] {
        type Rope = fn(Tensor<4>, Tensor<3>, Tensor<3>) -> Tensor<4>;
        let run = |rope: Rope, x: &[Tensor<1>]| {
            let [cos, sin] = [1, 2].map(|i| x[i].clone().reshape([tables, s, width]));
            // A view of heads, as it comes from a projection.
            let x = x[0].clone().reshape([b, s, heads, width]).swap_dims(1, 2);
            rope(x, cos, sin).flatten::<1>(0, 3)
        };
        let angles = tables * s * width;
        check_tracked(
            "rope_half",
            &[b * heads * s * width, angles, angles],
            &[true, false, false],
            &|x| run(ops::rope_half, x),
            &|x| run(plain::rope_half, x),
        );
    }
}

/// Rows, in, out.
const PRODUCTS: [[usize; 3]; 7] = [
    [1, 1, 1],
    [3, 5, 2],
    [4, 128, 768],
    [50, 33, 70],
    [300, 128, 128],
    [2, 600, 40],
    [150, 64, 13],
];

#[test]
fn linear_agrees() {
    for [rows, n_in, n_out] in PRODUCTS {
        type Linear = fn(Tensor<2>, Tensor<2>, Option<Tensor<1>>) -> Tensor<2>;
        let run = |linear: Linear, x: &[Tensor<1>]| {
            let weight = x[1].clone().reshape([n_out, n_in]);
            let bias = x.get(2).cloned();
            linear(x[0].clone().reshape([rows, n_in]), weight, bias).flatten::<1>(0, 1)
        };
        for lens in [
            &[rows * n_in, n_out * n_in][..],
            &[rows * n_in, n_out * n_in, n_out],
        ] {
            check("linear", lens, &|x| run(ops::linear, x), &|x| {
                run(plain::linear, x)
            });
        }
    }
}

#[test]
fn lora_linear_agrees() {
    for ([rows, n_in, n_out], rank) in PRODUCTS.into_iter().zip([1, 3, 16, 4, 32, 8, 2]) {
        type Lora =
            fn(Tensor<2>, Tensor<2>, Option<Tensor<1>>, Tensor<2>, Tensor<2>, f64) -> Tensor<2>;
        let run = |lora: Lora, x: &[Tensor<1>]| {
            let weight = x[1].clone().reshape([n_out, n_in]);
            let a = x[2].clone().reshape([rank, n_in]);
            let b = x[3].clone().reshape([n_out, rank]);
            let bias = x.get(4).cloned();
            lora(x[0].clone().reshape([rows, n_in]), weight, bias, a, b, 0.5).flatten::<1>(0, 1)
        };
        let lens = [rows * n_in, n_out * n_in, rank * n_in, n_out * rank, n_out];
        for lens in [&lens[..4], &lens] {
            check("lora_linear", lens, &|x| run(ops::lora_linear, x), &|x| {
                run(plain::lora_linear, x)
            });
        }
    }
}

#[test]
fn linear_rows_do_not_depend_on_the_batch() {
    let device = Device::flex();
    let numbers = |len, seed, shape: [usize; 2]| {
        let data = TensorData::new(super::numbers(len, seed), shape);
        Tensor::<2>::from_data(data, &device)
    };
    let (x, weight) = (
        numbers(200 * 96, 1, [200, 96]),
        numbers(70 * 96, 2, [70, 96]),
    );
    let all = ops::linear(x.clone(), weight.clone(), None);
    let few = ops::linear(x.narrow(0, 3, 2), weight, None);
    let rows = |x: Tensor<2>| super::host(x.flatten(0, 1));
    assert_eq!(rows(all.narrow(0, 3, 2)), rows(few));
}
