//! Ops on bf16, alone and mixed with f32, against the same ops on f32.

use burn::prelude::*;
use burn::tensor::{DType, TensorData};

use super::{Function, numbers};
use crate::ops::{self, AttentionMask, plain};

/// The output and the gradients of the tracked inputs, with input `i` of type `dtypes[i]`.
fn evaluate(
    function: Function,
    inputs: &[Vec<f32>],
    tracked: &[bool],
    dtypes: &[DType],
) -> Vec<Vec<f32>> {
    let device = Device::flex().autodiff();
    let leaves = inputs.iter().zip(tracked).zip(dtypes);
    let leaves = leaves.map(|((values, &tracked), &dtype)| {
        let data = TensorData::new(values.clone(), [values.len()]).convert_dtype(dtype);
        Tensor::<1>::from_data(data, (&device, dtype)).set_require_grad(tracked)
    });
    let leaves: Vec<Tensor<1>> = leaves.collect();
    let output = function(&leaves);
    assert_eq!(
        output.dtype(),
        dtypes[0],
        "a result has the type of the first input"
    );
    let upstream = TensorData::new(numbers(output.dims()[0], 99), output.dims());
    let upstream = Tensor::<1>::from_data(upstream, &device).cast(dtypes[0]);
    let gradients = (output.clone() * upstream).sum().backward();
    let mut results = vec![host(output.inner())];
    for ((leaf, _), dtype) in leaves
        .iter()
        .zip(tracked)
        .zip(dtypes)
        .filter(|((_, tracked), _)| **tracked)
    {
        let gradient = leaf.grad(&gradients).expect("a tracked input");
        assert_eq!(gradient.dtype(), *dtype, "a gradient has its input's type");
        results.push(host(gradient));
    }
    results
}

fn host(tensor: Tensor<1>) -> Vec<f32> {
    tensor
        .into_data()
        .convert_dtype(DType::F32)
        .try_to_vec()
        .expect("just converted")
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| -> f64 {
        a.iter()
            .zip(b)
            .map(|(a, b)| f64::from(*a) * f64::from(*b))
            .sum()
    };
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

/// Compares bf16 with f32 on numbers that bf16 has, for all inputs narrow, the first alone, and all but the first.
fn check(name: &str, lens: &[usize], constants: &[usize], function: Function) {
    let rounded = |values: Vec<f32>| -> Vec<f32> {
        values
            .into_iter()
            .map(|x| half::bf16::from_f32(x).to_f32())
            .collect()
    };
    let inputs: Vec<Vec<f32>> = (1..)
        .zip(lens)
        .map(|(i, &len)| rounded(numbers(len, i)))
        .collect();
    let tracked: Vec<bool> = (0..lens.len()).map(|i| !constants.contains(&i)).collect();
    let expected = evaluate(function, &inputs, &tracked, &vec![DType::F32; lens.len()]);
    let mixtures = [
        (DType::BF16, DType::BF16),
        (DType::BF16, DType::F32),
        (DType::F32, DType::BF16),
    ];
    for (first, rest) in mixtures {
        let mut dtypes = vec![rest; lens.len()];
        dtypes[0] = first;
        let results = evaluate(function, &inputs, &tracked, &dtypes);
        for (i, (ours, expected)) in results.iter().zip(&expected).enumerate() {
            let cosine = cosine(ours, expected);
            assert!(
                cosine > 0.9999,
                "{name}, {first:?} then {rest:?}: cosine of result {i} is {cosine}"
            );
        }
    }
}

fn reshaped<const D: usize>(x: &Tensor<1>, shape: [usize; D]) -> Tensor<D> {
    x.clone().reshape(shape)
}

fn flat<const D: usize>(x: Tensor<D>) -> Tensor<1> {
    let len = x.shape().num_elements();
    x.reshape([len])
}

#[test]
fn products_take_narrow_and_mixed_inputs() {
    check("linear", &[3 * 8, 5 * 8, 5], &[], &|x| {
        flat(ops::linear(
            reshaped(&x[0], [1, 3, 8]),
            reshaped(&x[1], [5, 8]),
            Some(x[2].clone()),
        ))
    });
    check("lora_linear", &[3 * 8, 5 * 8, 2 * 8, 5 * 2, 5], &[], &|x| {
        let (a, b) = (reshaped(&x[2], [2, 8]), reshaped(&x[3], [5, 2]));
        let bias = Some(x[4].clone());
        flat(ops::lora_linear(
            reshaped(&x[0], [1, 3, 8]),
            reshaped(&x[1], [5, 8]),
            bias,
            a,
            b,
            0.5,
        ))
    });
    check("conv2d", &[2 * 3 * 5 * 5, 4 * 3 * 3 * 3, 4], &[], &|x| {
        let (image, weight) = (reshaped(&x[0], [2, 3, 5, 5]), reshaped(&x[1], [4, 3, 3, 3]));
        flat(ops::conv2d(image, weight, Some(x[2].clone()), 1, [1; 4]))
    });
    check("attention", &[2 * 2 * 4 * 8; 3], &[], &|x| {
        let [q, k, v] = [0, 1, 2].map(|i| reshaped(&x[i], [2, 2, 4, 8]));
        flat(ops::attention(q, k, v, &AttentionMask::None, 0.35))
    });
}

#[test]
fn norms_and_modulations_take_narrow_and_mixed_inputs() {
    check("layer_norm", &[6 * 16, 16, 16], &[], &|x| {
        let (weight, bias) = (Some(x[1].clone()), Some(x[2].clone()));
        flat(ops::layer_norm(
            reshaped(&x[0], [6, 16]),
            weight,
            bias,
            1e-6,
        ))
    });
    check("rms_norm", &[6 * 16, 16], &[], &|x| {
        flat(ops::rms_norm(reshaped(&x[0], [6, 16]), x[1].clone(), 1e-6))
    });
    check("group_norm", &[2 * 4 * 6, 4, 4], &[], &|x| {
        flat(ops::group_norm(
            reshaped(&x[0], [2, 4, 6]),
            x[1].clone(),
            x[2].clone(),
            2,
            1e-6,
        ))
    });
    check(
        "layer_norm_modulate",
        &[2 * 3 * 16, 2 * 16, 2 * 16],
        &[],
        &|x| {
            let (shift, scale) = (reshaped(&x[1], [2, 1, 16]), reshaped(&x[2], [2, 1, 16]));
            flat(ops::layer_norm_modulate(
                reshaped(&x[0], [2, 3, 16]),
                shift,
                scale,
                1e-6,
            ))
        },
    );
    check("gate_add", &[2 * 3 * 16, 2 * 3 * 16, 2 * 16], &[], &|x| {
        let (y, gate) = (reshaped(&x[1], [2, 3, 16]), reshaped(&x[2], [2, 1, 16]));
        flat(ops::gate_add(reshaped(&x[0], [2, 3, 16]), y, gate))
    });
    check("silu_mul", &[40, 40], &[], &|x| {
        ops::silu_mul(x[0].clone(), x[1].clone())
    });
    check("gelu_tanh", &[40], &[], &|x| ops::gelu_tanh(x[0].clone()));
}

#[test]
fn rotations_take_narrow_and_mixed_inputs() {
    let rotated = |x: &[Tensor<1>]| {
        let (cos, sin) = (reshaped(&x[2], [3, 4]), reshaped(&x[3], [3, 4]));
        flat(ops::rms_norm_rope(
            reshaped(&x[0], [2, 3, 16]),
            x[1].clone(),
            cos,
            sin,
            2,
            1e-6,
        ))
    };
    check(
        "rms_norm_rope",
        &[2 * 3 * 16, 8, 3 * 4, 3 * 4],
        &[2, 3],
        &rotated,
    );
    check("rope_half", &[2 * 2 * 3 * 8, 3 * 8, 3 * 8], &[1, 2], &|x| {
        let (cos, sin) = (reshaped(&x[1], [1, 3, 8]), reshaped(&x[2], [1, 3, 8]));
        flat(ops::rope_half(reshaped(&x[0], [2, 2, 3, 8]), cos, sin))
    });
}

#[test]
fn other_devices_ops_take_mixed_inputs_too() {
    check(
        "plain rms_norm_rope",
        &[2 * 3 * 16, 8, 3 * 4, 3 * 4],
        &[2, 3],
        &|x| {
            let (cos, sin) = (reshaped(&x[2], [3, 4]), reshaped(&x[3], [3, 4]));
            flat(plain::rms_norm_rope(
                reshaped(&x[0], [2, 3, 16]),
                x[1].clone(),
                cos,
                sin,
                2,
                1e-6,
            ))
        },
    );
    check(
        "plain rope_half",
        &[2 * 2 * 3 * 8, 3 * 8, 3 * 8],
        &[1, 2],
        &|x| {
            let (cos, sin) = (reshaped(&x[1], [1, 3, 8]), reshaped(&x[2], [1, 3, 8]));
            flat(plain::rope_half(reshaped(&x[0], [2, 2, 3, 8]), cos, sin))
        },
    );
}
