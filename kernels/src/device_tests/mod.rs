//! Every kernel beside a few lines of plain Rust in f64, on the device that this build has.

use burn_backend::ops::FloatTensorOps;
use burn_backend::{DType, TensorData};
use burn_cubecl::ops::{into_data_sync, permute, reshape};
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{CubeBackend, CubeDevice};

use crate::*;

mod attention;

const TOLERANCE: f64 = 2e-5;

fn device() -> CubeDevice {
    #[cfg(feature = "wgpu")]
    return CubeDevice::Wgpu(Default::default());
    #[cfg(not(feature = "wgpu"))]
    CubeDevice::Cuda(Default::default())
}

/// Numbers of about one, the same for the same seed.
fn numbers(len: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 24) as f32
    };
    (0..len)
        .map(|_| (next() + next() + next() + next() - 2.0) * 1.7)
        .collect()
}

fn tensor<const D: usize>(values: &[f32], shape: [usize; D]) -> CubeTensor {
    CubeBackend::float_from_data(TensorData::new(values.to_vec(), shape), &device())
}

fn values(tensor: CubeTensor) -> Vec<f32> {
    into_data_sync(tensor)
        .convert_dtype(DType::F32)
        .try_into_vec()
        .expect("f32")
}

fn assert_close(what: &str, ours: CubeTensor, expected: &[f64]) {
    let ours = values(ours);
    assert_eq!(ours.len(), expected.len(), "{what}: as many numbers");
    let largest = expected.iter().fold(1e-2f64, |most, x| most.max(x.abs()));
    for (at, (ours, expected)) in ours.iter().zip(expected).enumerate() {
        let off = (f64::from(*ours) - expected).abs() / largest;
        assert!(
            off <= TOLERANCE,
            "{what}: {ours} instead of {expected} at {at}, largest {largest}"
        );
    }
}

fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&x| f64::from(x)).collect()
}

/// The gradient of `sum(f(x) grad)` by x, by central differences.
fn slope(x: &[f64], grad: &[f64], f: impl Fn(&[f64]) -> Vec<f64>) -> Vec<f64> {
    let step = 1e-5;
    let mut x = x.to_vec();
    (0..x.len())
        .map(|i| {
            let middle = x[i];
            let mut along = |at: f64| {
                x[i] = at;
                f(&x).iter().zip(grad).map(|(y, g)| y * g).sum::<f64>()
            };
            let difference = along(middle + step) - along(middle - step);
            x[i] = middle;
            difference / (2.0 * step)
        })
        .collect()
}

fn plain_normalize(x: &[f64], width: usize, centered: bool, eps: f64) -> Vec<f64> {
    let row = |row: &[f64]| {
        let mean = if centered {
            row.iter().sum::<f64>() / width as f64
        } else {
            0.0
        };
        let square = row.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / width as f64;
        row.iter()
            .map(|x| (x - mean) / (square + eps).sqrt())
            .collect::<Vec<_>>()
    };
    x.chunks_exact(width).flat_map(row).collect()
}

#[test]
fn rows_are_normal_modulated_or_affine() {
    for (width, batch, length) in [(48, 2, 5), (7, 1, 3), (600, 2, 2)] {
        let x = numbers(batch * length * width, 1);
        let (scale, shift, grad) = (
            numbers(batch * width, 2),
            numbers(batch * width, 3),
            numbers(x.len(), 4),
        );
        for kind in [(true, true), (true, false), (false, false)] {
            let kind = Normalization {
                centered: kind.0,
                one_plus_scale: kind.1,
            };
            let offset = if kind.one_plus_scale { 1.0 } else { 0.0 };
            let f = |x: &[f64]| {
                let normal = plain_normalize(x, width, kind.centered, 1e-6);
                let at = |i: usize| i / (length * width) * width + i % width;
                let y = normal.iter().enumerate();
                y.map(|(i, y)| y * (f64::from(scale[at(i)]) + offset) + f64::from(shift[at(i)]))
                    .collect::<Vec<_>>()
            };
            let shape = [batch, length, width];
            let parameter = |values: &[f32]| Some(tensor(values, [batch, 1, width]));
            let y = normalize(
                tensor(&x, shape),
                parameter(&scale),
                parameter(&shift),
                kind,
                1e-6,
            );
            assert_close("output", y, &f(&wide(&x)));
            let dx = normalize_grad(
                tensor(&x, shape),
                parameter(&scale),
                tensor(&grad, shape),
                kind,
                1e-6,
            );
            assert_close("gradient", dx, &slope(&wide(&x), &wide(&grad), f));
        }
        let y = normalize(
            tensor(&x, [batch * length, width]),
            None,
            None,
            Normalization {
                centered: true,
                one_plus_scale: false,
            },
            1e-6,
        );
        assert_close("plain", y, &plain_normalize(&wide(&x), width, true, 1e-6));
    }
}

#[test]
fn activations_and_their_slopes() {
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    let x: Vec<f32> = numbers(1000, 1).iter().map(|x| x * 4.0).collect();
    let grad = numbers(1000, 2);
    let tanh = |x: f64| {
        0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x)).tanh())
    };
    let cases: [(Activation, &dyn Fn(f64) -> f64); 3] = [
        (Activation::GeluTanh, &tanh),
        (Activation::QuickGelu, &|x| x * sigmoid(1.702 * x)),
        (Activation::Silu, &|x| x * sigmoid(x)),
    ];
    for (activation, plain) in cases {
        let f = |x: &[f64]| x.iter().map(|&x| plain(x)).collect::<Vec<_>>();
        assert_close(
            "output",
            activate(tensor(&x, [10, 100]), None, activation),
            &f(&wide(&x)),
        );
        let dx = activate_grad(tensor(&x, [1000]), None, tensor(&grad, [1000]), activation);
        let expected: Vec<f64> = wide(&x)
            .iter()
            .zip(&wide(&grad))
            .map(|(&x, g)| slope(&[x], &[*g], f)[0])
            .collect();
        assert_close("gradient", dx, &expected);
        let product: Vec<f64> = f(&wide(&x))
            .iter()
            .zip(&wide(&grad))
            .map(|(a, b)| a * b)
            .collect();
        assert_close(
            "product",
            activate_mul(tensor(&x, [1000]), tensor(&grad, [1000]), activation),
            &product,
        );
    }
    // Half of it lies below zero, and at one 0.8413 of it does.
    let y = activate(tensor(&[0.0, 1.0, -1.0], [3]), None, Activation::GeluErf);
    assert_close(
        "by the error function",
        y,
        &[0.0, 0.841344746, -0.158655254],
    );
}

#[test]
fn a_bias_goes_in_first() {
    let (x, bias, grad) = (numbers(60, 1), numbers(12, 2), numbers(60, 3));
    let sum = |x: &[f64]| -> Vec<f64> {
        let numbers = x.iter().enumerate();
        numbers.map(|(i, x)| x + f64::from(bias[i % 12])).collect()
    };
    let f = |x: &[f64]| -> Vec<f64> { sum(x).iter().map(|x| x / (1.0 + (-x).exp())).collect() };
    let (given, of_row) = (|| tensor(&x, [5, 12]), || tensor(&bias, [12]));
    assert_close("sum", add_bias(given(), of_row()), &sum(&wide(&x)));
    let y = activate(given(), Some(of_row()), Activation::Silu);
    assert_close("output", y, &f(&wide(&x)));
    let dx = activate_grad(
        given(),
        Some(of_row()),
        tensor(&grad, [5, 12]),
        Activation::Silu,
    );
    assert_close("gradient", dx, &slope(&wide(&x), &wide(&grad), f));
}

#[test]
fn linear_layers_of_few_and_of_many_rows() {
    for (rows, width, features) in [
        (1, 300, 70),
        (FEW_ROWS, 64, 9),
        (3, 7, 20),
        (FEW_ROWS + 1, 64, 20),
    ] {
        let (x, weights) = (numbers(rows * width, 1), numbers(features * width, 2));
        let bias = numbers(features, 3);
        let product = |row: usize, feature: usize| -> f64 {
            let pairs = x[row * width..][..width]
                .iter()
                .zip(&weights[feature * width..][..width]);
            pairs.map(|(x, w)| f64::from(*x) * f64::from(*w)).sum()
        };
        let all = (0..rows).flat_map(|row| (0..features).map(move |feature| (row, feature)));
        let products: Vec<f64> = all.map(|(row, feature)| product(row, feature)).collect();
        let sums = products.iter().enumerate();
        let sums: Vec<f64> = sums
            .map(|(i, y)| y + f64::from(bias[i % features]))
            .collect();
        let given = || {
            (
                tensor(&x, [1, rows, width]),
                tensor(&weights, [features, width]),
            )
        };
        let (x, weight) = given();
        assert_close("without a bias", linear(x, weight, None), &products);
        let (x, weight) = given();
        assert_close(
            "with a bias",
            linear(x, weight.clone(), Some(tensor(&bias, [features]))),
            &sums,
        );
        let grad = numbers(rows * features, 4);
        let of = |i: usize| {
            let terms = (0..features).map(|o| {
                f64::from(grad[i / width * features + o])
                    * f64::from(weights[o * width + i % width])
            });
            terms.sum::<f64>()
        };
        let expected: Vec<f64> = (0..rows * width).map(of).collect();
        assert_close(
            "gradient",
            linear_grad(tensor(&grad, [rows, features]), weight),
            &expected,
        );
    }
}

#[test]
fn gates_are_of_a_batch_row() {
    let (batch, length, width) = (2, 3, 20);
    let (x, y, gate) = (
        numbers(120, 1),
        numbers(120, 2),
        numbers(batch * 3 * width, 3),
    );
    // One of three parts of a modulation, where it lies.
    let gates = tensor(&gate, [batch, 1, 3 * width]);
    let middle = burn_cubecl::kernel::slice(gates, &[0..batch, 0..1, width..2 * width]);
    let of = |i: usize| f64::from(gate[i / (length * width) * 3 * width + width + i % width]);
    let shape = [batch, length, width];
    let sum: Vec<f64> = (0..120)
        .map(|i| f64::from(x[i]) + f64::from(y[i]) * of(i))
        .collect();
    let of_three = |bias| gate_add(tensor(&x, shape), tensor(&y, shape), bias, middle.clone());
    assert_close("sum", of_three(None), &sum);
    let bias = numbers(width, 4);
    let biased = sum.iter().enumerate();
    let biased = biased.map(|(i, sum)| sum + f64::from(bias[i % width]) * of(i));
    let biased: Vec<f64> = biased.collect();
    assert_close(
        "with a bias",
        of_three(Some(tensor(&bias, [width]))),
        &biased,
    );
    let dy: Vec<f64> = (0..120).map(|i| f64::from(y[i]) * of(i)).collect();
    assert_close("gradient", gate_input_grad(tensor(&y, shape), middle), &dy);
}

fn plain_heads(
    x: &[f64],
    weight: &[f32],
    cos: &[f32],
    sin: &[f32],
    [batch, length, heads, width]: [usize; 4],
) -> Vec<f64> {
    let normal = plain_normalize(x, width, false, 1e-6);
    let mut y = vec![0.0; x.len()];
    for (b, s, h) in
        (0..batch).flat_map(|b| (0..length).flat_map(move |s| (0..heads).map(move |h| (b, s, h))))
    {
        let head: Vec<f64> = (0..width)
            .map(|i| normal[((b * length + s) * heads + h) * width + i] * f64::from(weight[i]))
            .collect();
        for pair in 0..width / 2 {
            let (cos, sin) = (
                f64::from(cos[s * width / 2 + pair]),
                f64::from(sin[s * width / 2 + pair]),
            );
            let to = ((b * heads + h) * length + s) * width + 2 * pair;
            y[to] = head[2 * pair] * cos - head[2 * pair + 1] * sin;
            y[to + 1] = head[2 * pair] * sin + head[2 * pair + 1] * cos;
        }
    }
    y
}

#[test]
fn heads_are_normal_and_turned() {
    for [batch, length, heads_count, width] in [[2, 3, 3, 8], [1, 5, 2, 6], [1, 2, 4, 128]] {
        let sizes = [batch, length, heads_count, width];
        let (x, weight) = (
            numbers(batch * length * heads_count * width, 1),
            numbers(width, 2),
        );
        let angles = numbers(length * width / 2, 3);
        let (cos, sin): (Vec<f32>, Vec<f32>) = angles.iter().map(|a| (a.cos(), a.sin())).unzip();
        let rotation = || Rotation {
            cos: tensor(&cos, [length, width / 2]),
            sin: tensor(&sin, [length, width / 2]),
        };
        let shape = [batch, length, heads_count * width];
        let features = heads_count * width;
        let bias_values = numbers(features, 5);
        let bias = || Some(tensor(&bias_values, [features]));
        let y = heads(
            tensor(&x, shape),
            bias(),
            tensor(&weight, [width]),
            rotation(),
            heads_count,
            1e-6,
        );
        let f = |x: &[f64]| {
            let biased = x.iter().enumerate();
            let biased = biased.map(|(i, x)| x + f64::from(bias_values[i % features]));
            plain_heads(&biased.collect::<Vec<_>>(), &weight, &cos, &sin, sizes)
        };
        assert_close("output", y, &f(&wide(&x)));
        let grad = numbers(x.len(), 4);
        let upstream = tensor(&grad, [batch, heads_count, length, width]);
        let dx = heads_grad(
            tensor(&x, shape),
            bias(),
            tensor(&weight, [width]),
            rotation(),
            upstream,
            1e-6,
        );
        assert_close("gradient", dx, &slope(&wide(&x), &wide(&grad), f));
    }
}

#[test]
fn halves_are_turned_and_turned_back() {
    let [batch, heads_count, length, width] = [2, 3, 5, 8];
    let x = numbers(240, 1);
    let (cos, sin) = (numbers(length * width, 2), numbers(length * width, 3));
    let tables = || {
        (
            tensor(&cos, [1, length, width]),
            tensor(&sin, [1, length, width]),
        )
    };
    let f = |x: &[f64]| {
        let turn = |i: usize| {
            let (at, inner) = (i / width % length * width, i % width);
            let other = if inner < width / 2 {
                -x[i + width / 2]
            } else {
                x[i - width / 2]
            };
            x[i] * f64::from(cos[at + inner]) + other * f64::from(sin[at + inner])
        };
        (0..x.len()).map(turn).collect::<Vec<_>>()
    };
    let (c, s) = tables();
    assert_close(
        "output",
        rope_half(tensor(&x, [batch, heads_count, length, width]), c, s, false),
        &f(&wide(&x)),
    );
    let grad = numbers(240, 4);
    let (c, s) = tables();
    let dx = rope_half(
        tensor(&grad, [batch, heads_count, length, width]),
        c,
        s,
        true,
    );
    assert_close("gradient", dx, &slope(&wide(&x), &wide(&grad), f));
}

#[test]
fn adapters_are_added_in_f32() {
    for (rows, width, rank) in [(70, 300, 4), (3, 10, 33), (33, 129, 1)] {
        let (base, bias) = (numbers(rows * width, 1), numbers(width, 2));
        let (down, up) = (numbers(rows * rank, 3), numbers(width * rank, 4));
        let product = |r: usize, c: usize| {
            (0..rank)
                .map(|k| f64::from(down[r * rank + k]) * f64::from(up[c * rank + k]))
                .sum::<f64>()
        };
        let expected: Vec<f64> = (0..rows * width)
            .map(|i| {
                f64::from(base[i])
                    + f64::from(bias[i % width])
                    + 0.5 * product(i / width, i % width)
            })
            .collect();
        let (base, bias) = (tensor(&base, [rows, width]), tensor(&bias, [width]));
        let (down, up) = (tensor(&down, [rows, rank]), tensor(&up, [width, rank]));
        let by_rank = permute(up.clone(), &[1, 0]);
        assert_close(
            "sum",
            lora_add(
                base.clone(),
                Some(bias.clone()),
                down.clone(),
                up,
                false,
                0.5,
            ),
            &expected,
        );
        assert_close(
            "by rank",
            lora_add(base, Some(bias), down, by_rank, true, 0.5),
            &expected,
        );
    }
}

#[test]
fn groups_of_channels_are_normal() {
    let [batch, channels, pixels, groups] = [2, 6, 35, 3];
    let x = numbers(batch * channels * pixels, 1);
    let (weight, bias) = (numbers(channels, 2), numbers(channels, 3));
    let normal = plain_normalize(&wide(&x), channels / groups * pixels, true, 1e-6);
    let scaled = normal.iter().enumerate().map(|(i, y)| {
        let channel = i / pixels % channels;
        y * f64::from(weight[channel]) + f64::from(bias[channel])
    });
    let scaled: Vec<f64> = scaled.collect();
    let silu: Vec<f64> = scaled.iter().map(|x| x / (1.0 + (-x).exp())).collect();
    for (with_silu, expected) in [(false, scaled), (true, silu)] {
        let x = tensor(&x, [batch, channels, 5, 7]);
        let (weight, bias) = (tensor(&weight, [channels]), tensor(&bias, [channels]));
        assert_close(
            "output",
            group_norm(x, weight, bias, groups, 1e-6, with_silu),
            &expected,
        );
    }
}
