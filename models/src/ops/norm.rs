//! Layer and root-mean-square normalisation over the last dimension.

use burn::prelude::*;
use burn_flex::FlexTensor;

use super::fused::{self, Flex, FusedOp};
use super::norm_kernels::{self, Kind, Rows};
use super::plain;
use super::values::{dense, dims, tensor_like, values, width};

/// Layer normalisation over the last dimension, with the affine part that is given.
///
/// # Shapes
/// - x and output: `[..., D]`
/// - weight, bias: `[D]`
pub fn layer_norm<const D: usize>(
    x: Tensor<D>,
    weight: Option<Tensor<1>>,
    bias: Option<Tensor<1>>,
    eps: f64,
) -> Tensor<D> {
    let op = Norm::new(Kind::Layer, eps);
    match (weight, bias) {
        (None, None) => match fused::apply(op, [x.into_dispatch()]) {
            Ok(y) => Tensor::from_dispatch(y),
            Err([x]) => plain::layer_norm(Tensor::from_dispatch(x), None, None, eps),
        },
        (Some(weight), None) => {
            match fused::apply(op, [x.into_dispatch(), weight.into_dispatch()]) {
                Ok(y) => Tensor::from_dispatch(y),
                Err([x, weight]) => {
                    let weight = Some(Tensor::from_dispatch(weight));
                    plain::layer_norm(Tensor::from_dispatch(x), weight, None, eps)
                }
            }
        }
        (weight, Some(bias)) => {
            let weight = weight.unwrap_or_else(|| bias.ones_like());
            let inputs = [
                x.into_dispatch(),
                weight.into_dispatch(),
                bias.into_dispatch(),
            ];
            match fused::apply(op, inputs) {
                Ok(y) => Tensor::from_dispatch(y),
                Err([x, weight, bias]) => {
                    let weight = Some(Tensor::from_dispatch(weight));
                    let bias = Some(Tensor::from_dispatch(bias));
                    plain::layer_norm(Tensor::from_dispatch(x), weight, bias, eps)
                }
            }
        }
    }
}

/// Root-mean-square normalisation over the last dimension: `x / sqrt(mean(x^2) + eps) * weight`.
///
/// # Shapes
/// - x and output: `[..., D]`
/// - weight: `[D]`
pub fn rms_norm<const D: usize>(x: Tensor<D>, weight: Tensor<1>, eps: f64) -> Tensor<D> {
    let op = Norm::new(Kind::RootMeanSquare, eps);
    match fused::apply(op, [x.into_dispatch(), weight.into_dispatch()]) {
        Ok(y) => Tensor::from_dispatch(y),
        Err([x, weight]) => {
            plain::rms_norm(Tensor::from_dispatch(x), Tensor::from_dispatch(weight), eps)
        }
    }
}

/// Adaptive layer normalisation: `layer_norm(x) * (1 + scale) + shift`.
///
/// # Shapes
/// - x and output: `[B, S, D]`
/// - shift, scale: `[B, 1, D]`
pub fn layer_norm_modulate(
    x: Tensor<3>,
    shift: Tensor<3>,
    scale: Tensor<3>,
    eps: f64,
) -> Tensor<3> {
    let [batch, _, features] = x.dims();
    assert_eq!(
        shift.dims(),
        [batch, 1, features],
        "one shift per batch row"
    );
    assert_eq!(
        scale.dims(),
        [batch, 1, features],
        "one scale per batch row"
    );
    let op = Modulate { eps: eps as f32 };
    match fused::apply(op, [x, scale, shift].map(Tensor::into_dispatch)) {
        Ok(y) => Tensor::from_dispatch(y),
        Err(inputs) => {
            let [x, scale, shift] = inputs.map(Tensor::from_dispatch);
            plain::layer_norm_modulate(x, shift, scale, eps)
        }
    }
}

/// Inputs: x, then weight, then bias, as far as `N` goes.
#[derive(Clone, Debug)]
pub(super) struct Norm {
    pub(super) kind: Kind,
    pub(super) eps: f32,
}

impl Norm {
    fn new(kind: Kind, eps: f64) -> Self {
        Self {
            kind,
            eps: eps as f32,
        }
    }

    fn rows<'a>(&self, x: &'a FlexTensor, weight: &'a [f32]) -> Rows<'a> {
        Rows {
            kind: self.kind,
            eps: self.eps,
            x: values(x),
            width: width(x),
            rows_per_factor: values(x).len() / width(x).max(1),
            factors: weight,
        }
    }
}

impl<const N: usize> FusedOp<Flex, N> for Norm {
    type Saved = [FlexTensor; N];

    fn forward(&self, inputs: [FlexTensor; N], _: [bool; N]) -> (FlexTensor, Self::Saved) {
        let inputs = inputs.map(dense);
        let weight = weight_or_ones(&inputs);
        let offsets = inputs.get(2).map(values);
        let y = norm_kernels::forward(&self.rows(&inputs[0], &weight), offsets);
        (tensor_like(y, &inputs[0]), inputs)
    }

    fn backward(
        &self,
        inputs: Self::Saved,
        grad: FlexTensor,
        tracked: [bool; N],
    ) -> [Option<FlexTensor>; N] {
        let grad = dense(grad);
        let weight = weight_or_ones(&inputs);
        let rows = self.rows(&inputs[0], &weight);
        std::array::from_fn(|i| {
            tracked[i].then(|| {
                let gradient = match i {
                    0 => norm_kernels::input_grad(&rows, values(&grad)),
                    1 => norm_kernels::factor_grads(&rows, values(&grad)),
                    _ => norm_kernels::offset_grads(&rows, values(&grad)),
                };
                tensor_like(gradient, &inputs[i])
            })
        })
    }
}

fn weight_or_ones(inputs: &[FlexTensor]) -> std::borrow::Cow<'_, [f32]> {
    match inputs.get(1) {
        Some(weight) => values(weight).into(),
        None => vec![1.0; width(&inputs[0])].into(),
    }
}

/// Inputs: x, scale, shift.
#[derive(Clone, Debug)]
pub(super) struct Modulate {
    pub(super) eps: f32,
}

impl Modulate {
    fn rows<'a>(&self, x: &'a FlexTensor, factors: &'a [f32]) -> Rows<'a> {
        let [_, length, width] = dims(x);
        Rows {
            kind: Kind::Layer,
            eps: self.eps,
            x: values(x),
            width,
            rows_per_factor: length,
            factors,
        }
    }
}

impl FusedOp<Flex, 3> for Modulate {
    type Saved = [FlexTensor; 2];

    fn forward(&self, inputs: [FlexTensor; 3], _: [bool; 3]) -> (FlexTensor, Self::Saved) {
        let [x, scale, shift] = inputs.map(dense);
        let factors = one_plus(&scale);
        let y = norm_kernels::forward(&self.rows(&x, &factors), Some(values(&shift)));
        (tensor_like(y, &x), [x, scale])
    }

    fn backward(
        &self,
        [x, scale]: Self::Saved,
        grad: FlexTensor,
        tracked: [bool; 3],
    ) -> [Option<FlexTensor>; 3] {
        let grad = dense(grad);
        let factors = one_plus(&scale);
        let rows = self.rows(&x, &factors);
        let grad = values(&grad);
        [
            tracked[0].then(|| tensor_like(norm_kernels::input_grad(&rows, grad), &x)),
            tracked[1].then(|| tensor_like(norm_kernels::factor_grads(&rows, grad), &scale)),
            tracked[2].then(|| tensor_like(norm_kernels::offset_grads(&rows, grad), &scale)),
        ]
    }
}

fn one_plus(scale: &FlexTensor) -> Vec<f32> {
    values(scale).iter().map(|scale| 1.0 + scale).collect()
}
