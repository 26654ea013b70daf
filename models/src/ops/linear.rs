//! Linear layers on weights as checkpoints store them, alone and with a low-rank adapter.

use burn::prelude::*;
use burn_flex::FlexTensor;

use super::fused::{self, Flex, FusedOp};
use super::norm_kernels::add_row;
use super::plain;
use super::product::{Matrix, MatrixMut, Onto, multiply};
use super::values::{dense, kept, sum_blocks, tensor, values, width, written};

/// `x weight^T + bias`, with the weight as checkpoints store it.
///
/// # Shapes
/// - x: `[..., in_features]`
/// - weight: `[out_features, in_features]`, bias: `[out_features]`
/// - output: `[..., out_features]`
pub fn linear<const D: usize>(
    x: Tensor<D>,
    weight: Tensor<2>,
    bias: Option<Tensor<1>>,
) -> Tensor<D> {
    check(&x, &weight, bias.as_ref());
    let inputs = [x.into_dispatch(), weight.into_dispatch()];
    let Some(bias) = bias else {
        return match fused::apply(Linear, inputs) {
            Ok(y) => Tensor::from_dispatch(y),
            Err([x, weight]) => plain::linear(
                Tensor::from_dispatch(x),
                Tensor::from_dispatch(weight),
                None,
            ),
        };
    };
    let [x, weight] = inputs;
    match fused::apply(Linear, [x, weight, bias.into_dispatch()]) {
        Ok(y) => Tensor::from_dispatch(y),
        Err([x, weight, bias]) => plain::linear(
            Tensor::from_dispatch(x),
            Tensor::from_dispatch(weight),
            Some(Tensor::from_dispatch(bias)),
        ),
    }
}

/// A linear layer with a low-rank adapter: `x weight^T + bias + scale (x a^T) b^T`.
///
/// # Shapes
/// - x: `[..., in_features]`
/// - weight: `[out_features, in_features]`, bias: `[out_features]`
/// - a: `[rank, in_features]`, b: `[out_features, rank]`; they may be wider than the rest
/// - output: `[..., out_features]`
pub fn lora_linear<const D: usize>(
    x: Tensor<D>,
    weight: Tensor<2>,
    bias: Option<Tensor<1>>,
    a: Tensor<2>,
    b: Tensor<2>,
    scale: f64,
) -> Tensor<D> {
    check(&x, &weight, bias.as_ref());
    let ([out_features, in_features], [rank, _]) = (weight.dims(), a.dims());
    assert_eq!(a.dims(), [rank, in_features], "a is [rank, in_features]");
    assert_eq!(b.dims(), [out_features, rank], "b is [out_features, rank]");
    let op = LoraLinear {
        scale: scale as f32,
    };
    let inputs = [
        x.into_dispatch(),
        weight.into_dispatch(),
        a.into_dispatch(),
        b.into_dispatch(),
    ];
    let Some(bias) = bias else {
        return match fused::apply(op, inputs) {
            Ok(y) => Tensor::from_dispatch(y),
            Err([x, weight, a, b]) => {
                let [weight, a, b] = [weight, a, b].map(Tensor::from_dispatch);
                plain::lora_linear(Tensor::from_dispatch(x), weight, None, a, b, scale)
            }
        };
    };
    let [x, weight, a, b] = inputs;
    match fused::apply(op, [x, weight, a, b, bias.into_dispatch()]) {
        Ok(y) => Tensor::from_dispatch(y),
        Err([x, weight, a, b, bias]) => {
            let [weight, a, b] = [weight, a, b].map(Tensor::from_dispatch);
            let bias = Some(Tensor::from_dispatch(bias));
            plain::lora_linear(Tensor::from_dispatch(x), weight, bias, a, b, scale)
        }
    }
}

fn check<const D: usize>(x: &Tensor<D>, weight: &Tensor<2>, bias: Option<&Tensor<1>>) {
    let [out_features, in_features] = weight.dims();
    assert_eq!(
        x.dims()[D - 1],
        in_features,
        "a weight is [out_features, in_features]"
    );
    assert!(
        bias.is_none_or(|bias| bias.dims() == [out_features]),
        "a bias is [out_features]"
    );
}

/// Inputs: x, weight and, if there are three, bias.
#[derive(Clone, Debug)]
pub(super) struct Linear;

/// The factors that gradients need.
#[derive(Clone, Debug)]
pub(super) struct Saved {
    x: Option<FlexTensor>,
    weight: Option<FlexTensor>,
}

impl<const N: usize> FusedOp<Flex, N> for Linear {
    type Saved = Saved;

    fn forward(&self, inputs: [FlexTensor; N], tracked: [bool; N]) -> (FlexTensor, Saved) {
        let given = inputs;
        let inputs = given.clone().map(dense);
        let (x, weight) = (matrix(&inputs[0]), matrix(&inputs[1]));
        let onto = inputs
            .get(2)
            .map_or(Onto::Zero, |bias| Onto::Row(values(bias)));
        let y = product(x, weight.transposed(), 1.0, onto);
        let y = with_width(y, &inputs[0], weight.rows);
        let saved = Saved {
            x: tracked[1].then(|| kept(&given[0], &inputs[0])),
            weight: tracked[0].then(|| kept(&given[1], &inputs[1])),
        };
        (y, saved)
    }

    fn backward(
        &self,
        saved: Saved,
        grad: FlexTensor,
        tracked: [bool; N],
    ) -> [Option<FlexTensor>; N] {
        let grad = dense(grad);
        let Saved { x, weight } = saved;
        let (x, weight) = (x.map(dense), weight.map(dense));
        std::array::from_fn(|i| {
            tracked[i].then(|| match i {
                0 => input_grad(&grad, weight.as_ref().expect("saved")),
                1 => weight_grad(&grad, x.as_ref().expect("saved"), 1.0),
                _ => bias_grad(&grad),
            })
        })
    }
}

/// Inputs: x, weight, a, b and, if there are five, bias.
#[derive(Clone, Debug)]
pub(super) struct LoraLinear {
    pub(super) scale: f32,
}

/// The factors that gradients need; `down` is `scale x a^T`.
#[derive(Clone, Debug)]
pub(super) struct LoraSaved {
    x: Option<FlexTensor>,
    weight: Option<FlexTensor>,
    a: FlexTensor,
    b: FlexTensor,
    down: FlexTensor,
}

impl<const N: usize> FusedOp<Flex, N> for LoraLinear {
    type Saved = LoraSaved;

    fn forward(&self, inputs: [FlexTensor; N], tracked: [bool; N]) -> (FlexTensor, LoraSaved) {
        let given = inputs;
        let inputs = given.clone().map(dense);
        let [x, weight, a, b] = std::array::from_fn(|i| matrix(&inputs[i]));
        let onto = inputs
            .get(4)
            .map_or(Onto::Zero, |bias| Onto::Row(values(bias)));
        let down = product(x, a.transposed(), self.scale, Onto::Zero);
        let rows = x.rows;
        let mut y = product(x, weight.transposed(), 1.0, onto);
        let up = Matrix::new(&down, rows, a.rows);
        let sum = MatrixMut::new(&mut y, rows, weight.rows);
        multiply(sum, up, b.transposed(), 1.0, Onto::Current);
        let y = with_width(y, &inputs[0], weight.rows);
        let saved = LoraSaved {
            down: tensor(down, [rows, a.rows]),
            x: (tracked[1] || tracked[2]).then(|| kept(&given[0], &inputs[0])),
            weight: tracked[0].then(|| kept(&given[1], &inputs[1])),
            a: inputs[2].clone(),
            b: inputs[3].clone(),
        };
        (y, saved)
    }

    fn backward(
        &self,
        saved: LoraSaved,
        grad: FlexTensor,
        tracked: [bool; N],
    ) -> [Option<FlexTensor>; N] {
        let grad = dense(grad);
        let saved = LoraSaved {
            x: saved.x.map(dense),
            weight: saved.weight.map(dense),
            ..saved
        };
        // The gradient of `down`, wanted by all but `weight`, `b` and the bias.
        let down_grad = (tracked[0] || tracked[2]).then(|| input_grad(&grad, &saved.b));
        let x = || saved.x.as_ref().expect("saved");
        std::array::from_fn(|i| {
            tracked[i].then(|| match i {
                0 => lora_input_grad(
                    &grad,
                    &saved,
                    down_grad.as_ref().expect("computed"),
                    self.scale,
                ),
                1 => weight_grad(&grad, x(), 1.0),
                2 => weight_grad(down_grad.as_ref().expect("computed"), x(), self.scale),
                3 => weight_grad(&grad, &saved.down, 1.0),
                _ => bias_grad(&grad),
            })
        })
    }
}

/// All but the last dimension are rows.
fn matrix(tensor: &FlexTensor) -> Matrix<'_> {
    let columns = width(tensor);
    let all = values(tensor);
    Matrix::new(all, all.len() / columns.max(1), columns)
}

fn product(a: Matrix, b: Matrix, alpha: f32, onto: Onto) -> Vec<f32> {
    written(a.rows * b.columns, |c| {
        multiply(MatrixMut::new(c, a.rows, b.columns), a, b, alpha, onto)
    })
}

fn with_width(y: Vec<f32>, like: &FlexTensor, width: usize) -> FlexTensor {
    let mut shape = like.layout().shape().clone();
    let last = shape.num_dims() - 1;
    shape[last] = width;
    tensor(y, shape)
}

fn input_grad(grad: &FlexTensor, weight: &FlexTensor) -> FlexTensor {
    let dx = product(matrix(grad), matrix(weight), 1.0, Onto::Zero);
    with_width(dx, grad, width(weight))
}

fn lora_input_grad(
    grad: &FlexTensor,
    saved: &LoraSaved,
    down_grad: &FlexTensor,
    scale: f32,
) -> FlexTensor {
    let weight = saved.weight.as_ref().expect("saved");
    let (grad_rows, a) = (matrix(grad), matrix(&saved.a));
    let mut dx = product(grad_rows, matrix(weight), 1.0, Onto::Zero);
    let sum = MatrixMut::new(&mut dx, grad_rows.rows, a.columns);
    multiply(sum, matrix(down_grad), a, scale, Onto::Current);
    with_width(dx, grad, width(weight))
}

fn weight_grad(grad: &FlexTensor, x: &FlexTensor, alpha: f32) -> FlexTensor {
    let (grad, x) = (matrix(grad), matrix(x));
    let dw = product(grad.transposed(), x, alpha, Onto::Zero);
    tensor(dw, [grad.columns, x.columns])
}

fn bias_grad(grad: &FlexTensor) -> FlexTensor {
    let (all, columns) = (values(grad), width(grad));
    let sums = sum_blocks(all.len() / columns.max(1), columns, |rows, sums| {
        rows.for_each(|row| add_row(&all[row * columns..][..columns], sums))
    });
    tensor(sums, [columns])
}
