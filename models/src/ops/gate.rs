//! The gated residual of adaptive layer norm blocks.

use burn::prelude::*;
use burn_flex::FlexTensor;

use super::LinearOutput;
use super::fused::{self, Flex, FusedOp};
use super::plain;
use super::simd::{Simd, simd_fn};
use super::values::{
    block_rows, dense, dims, for_row_blocks, sum_blocks, tensor, tensor_like, values, written,
};

/// Gated residual: `x + y * gate`.
///
/// # Shapes
/// - x, y and output: `[B, S, D]`
/// - gate: `[B, 1, D]`
pub fn gate_add(x: Tensor<3>, y: impl Into<LinearOutput<3>>, gate: Tensor<3>) -> Tensor<3> {
    let (y, bias) = y.into().apart();
    let [batch, _, features] = x.dims();
    assert_eq!(x.dims(), y.dims(), "a residual is as large as its input");
    assert_eq!(gate.dims(), [batch, 1, features], "one gate per batch row");
    let op = GateAdd { bias: bias.clone() };
    match fused::apply(op, [x, y, gate].map(Tensor::into_dispatch)) {
        Ok(y) => Tensor::from_dispatch(y),
        Err(inputs) => {
            let [x, y, gate] = inputs.map(Tensor::from_dispatch);
            plain::gate_add(x, LinearOutput::of((y, bias)).into_tensor(), gate)
        }
    }
}

#[derive(Clone, Debug)]
pub(super) struct GateAdd {
    /// To be added to y; the CPU's outputs have it.
    pub(super) bias: Option<Tensor<1>>,
}

/// The inputs that the gradients need.
#[derive(Clone, Debug)]
pub(super) struct Saved {
    y: Option<FlexTensor>,
    gate: FlexTensor,
}

impl FusedOp<Flex, 3> for GateAdd {
    type Saved = Saved;

    fn forward(&self, inputs: [FlexTensor; 3], tracked: [bool; 3]) -> (FlexTensor, Saved) {
        debug_assert!(self.bias.is_none(), "outputs of the CPU have their bias");
        let [x, y, gate] = inputs.map(dense);
        let [_, length, width] = dims(&x);
        let sums = rowwise(&x, |first, out| {
            let (x, y) = (
                rows(&x, first, out.len(), width),
                rows(&y, first, out.len(), width),
            );
            each_batch_row(first, length, width, out, |batch, part, out| {
                let gate = &values(&gate)[batch * width..][..width];
                add_gated(&x[part.clone()], &y[part], gate, out);
            });
        });
        let y = tracked[2].then_some(y);
        (tensor_like(sums, &x), Saved { y, gate })
    }

    fn backward(
        &self,
        saved: Saved,
        grad: FlexTensor,
        tracked: [bool; 3],
    ) -> [Option<FlexTensor>; 3] {
        let grad = dense(grad);
        let dy = tracked[1].then(|| scaled(&grad, &saved.gate));
        let dgate = tracked[2].then(|| gate_grad(&grad, &saved.y.expect("saved")));
        [tracked[0].then_some(grad), dy, dgate]
    }
}

/// The rows from `first` on that correspond to `len` numbers of the output.
fn rows(tensor: &FlexTensor, first: usize, len: usize, width: usize) -> &[f32] {
    &values(tensor)[first * width..][..len]
}

fn rowwise(like: &FlexTensor, kernel: impl Fn(usize, &mut [f32]) + Sync) -> Vec<f32> {
    let [_, _, width] = dims(like);
    written(values(like).len(), |out| {
        for_row_blocks(out, width, block_rows(width), kernel)
    })
}

/// Splits a block of rows where a new batch row starts: batch row, numbers of the block, output.
fn each_batch_row(
    first: usize,
    length: usize,
    width: usize,
    out: &mut [f32],
    mut kernel: impl FnMut(usize, std::ops::Range<usize>, &mut [f32]),
) {
    let end = first + out.len() / width;
    let mut row = first;
    while row < end {
        let batch = row / length;
        let next = end.min((batch + 1) * length);
        let part = (row - first) * width..(next - first) * width;
        kernel(batch, part.clone(), &mut out[part]);
        row = next;
    }
}

fn scaled(grad: &FlexTensor, gate: &FlexTensor) -> FlexTensor {
    let [_, length, width] = dims(grad);
    let dy = rowwise(grad, |first, out| {
        let grad = rows(grad, first, out.len(), width);
        each_batch_row(first, length, width, out, |batch, part, out| {
            multiply_rows(&grad[part], &values(gate)[batch * width..][..width], out);
        });
    });
    tensor_like(dy, grad)
}

fn gate_grad(grad: &FlexTensor, y: &FlexTensor) -> FlexTensor {
    let [batch, length, width] = dims(grad);
    let mut all = Vec::with_capacity(batch * width);
    for row in 0..batch {
        let of_row = |tensor| &values(tensor)[row * length * width..][..length * width];
        let (grad, y) = (of_row(grad), of_row(y));
        all.extend(sum_blocks(length, width, |rows, sums| {
            let part = rows.start * width..rows.end * width;
            add_products(&grad[part.clone()], &y[part], sums);
        }));
    }
    tensor(all, [batch, 1, width])
}

simd_fn! {
    /// `out = x + y * gate`, the gate being one row.
    fn add_gated(x: &[f32], y: &[f32], gate: &[f32], out: &mut [f32]) = add_gated_kernel;
    /// `out = x * factor`, the factor being one row.
    fn multiply_rows(x: &[f32], factor: &[f32], out: &mut [f32]) = multiply_rows_kernel;
    /// `sums += a * b`, summed over the rows.
    fn add_products(a: &[f32], b: &[f32], sums: &mut [f32]) = add_products_kernel;
}

#[inline(always)]
fn add_gated_kernel<S: Simd>(s: S, x: &[f32], y: &[f32], gate: &[f32], out: &mut [f32]) {
    let width = gate.len();
    for (i, out) in out.chunks_exact_mut(width).enumerate() {
        let part = i * width..(i + 1) * width;
        s.zip_map([&x[part.clone()], &y[part], gate], out, |[x, y, gate]| {
            s.mul_add(y, gate, x)
        });
    }
}

#[inline(always)]
fn multiply_rows_kernel<S: Simd>(s: S, x: &[f32], factor: &[f32], out: &mut [f32]) {
    let width = factor.len();
    for (x, out) in x.chunks_exact(width).zip(out.chunks_exact_mut(width)) {
        s.zip_map([x, factor], out, |[x, factor]| s.mul(x, factor));
    }
}

#[inline(always)]
fn add_products_kernel<S: Simd>(s: S, a: &[f32], b: &[f32], sums: &mut [f32]) {
    let width = sums.len();
    for (a, b) in a.chunks_exact(width).zip(b.chunks_exact(width)) {
        s.accumulate([a, b], sums, |[a, b], sum| s.mul_add(a, b, sum));
    }
}
