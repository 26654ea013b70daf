//! Rotary position embeddings.

use burn::prelude::*;
use burn_flex::FlexTensor;
use std::ops::Range;

use super::LinearOutput;
use super::fused::{self, Flex, FusedOp};
use super::heads::Heads;
use super::plain;
use super::simd::{Simd, simd_fn};
use super::values::{
    block_rows, dense, dense_rows, dims, for_row_blocks, sum_blocks, tensor, tensor_like, values,
    written,
};

/// RMS normalisation of every head, then the rotary embedding over neighbouring pairs `(2i, 2i + 1)`, as FLUX has it.
///
/// # Shapes
/// - x: `[B, S, heads * hd]`, weight: `[hd]`
/// - cos, sin: `[S, hd / 2]`
/// - output: `[B, heads, S, hd]`
pub fn rms_norm_rope(
    x: impl Into<LinearOutput<3>>,
    weight: Tensor<1>,
    cos: Tensor<2>,
    sin: Tensor<2>,
    heads: usize,
    eps: f64,
) -> Tensor<4> {
    let (x, bias) = x.into().apart();
    let [_, length, features] = x.dims();
    let head_dim = features / heads;
    assert_eq!(
        head_dim % 2,
        0,
        "heads of {head_dim} have no pairs to rotate"
    );
    assert_eq!(weight.dims(), [head_dim], "one weight per number of a head");
    assert_eq!(cos.dims(), [length, head_dim / 2], "one angle per pair");
    assert_eq!(sin.dims(), [length, head_dim / 2], "one angle per pair");
    let op = RmsNormRope {
        bias: bias.clone(),
        heads,
        eps: eps as f32,
    };
    let inputs = [
        x.into_dispatch(),
        weight.into_dispatch(),
        cos.into_dispatch(),
        sin.into_dispatch(),
    ];
    match fused::apply(op, inputs) {
        Ok(y) => Tensor::from_dispatch(y),
        Err([x, weight, cos, sin]) => plain::rms_norm_rope(
            LinearOutput::of((Tensor::from_dispatch(x), bias)).into_tensor(),
            Tensor::from_dispatch(weight),
            Tensor::from_dispatch(cos),
            Tensor::from_dispatch(sin),
            heads,
            eps,
        ),
    }
}

/// The rotary embedding over pairs half a head apart, as Qwen has it: `x cos + rotate_half(x) sin`.
///
/// # Shapes
/// - x and output: `[B, H, S, hd]`
/// - cos, sin: `[B or 1, S, hd]`
pub fn rope_half(x: Tensor<4>, cos: Tensor<3>, sin: Tensor<3>) -> Tensor<4> {
    let [batch, _, length, head_dim] = x.dims();
    let [tables, ..] = cos.dims();
    assert!(
        tables == 1 || tables == batch,
        "one table or one per batch row"
    );
    assert_eq!(
        cos.dims(),
        [tables, length, head_dim],
        "one angle per number"
    );
    assert_eq!(sin.dims(), cos.dims(), "sines fit the cosines");
    let inputs = [x.into_dispatch(), cos.into_dispatch(), sin.into_dispatch()];
    match fused::apply(RopeHalf, inputs) {
        Ok(y) => Tensor::from_dispatch(y),
        Err([x, cos, sin]) => plain::rope_half(
            Tensor::from_dispatch(x),
            Tensor::from_dispatch(cos),
            Tensor::from_dispatch(sin),
        ),
    }
}

/// Inputs: x, weight, cos, sin; the angles get no gradient.
#[derive(Clone, Debug)]
pub(super) struct RmsNormRope {
    /// To be added to x; the CPU's outputs have it.
    pub(super) bias: Option<Tensor<1>>,
    pub(super) heads: usize,
    pub(super) eps: f32,
}

#[derive(Clone, Debug)]
pub(super) struct Saved {
    x: FlexTensor,
    weight: FlexTensor,
    angles: Angles,
}

impl FusedOp<Flex, 4> for RmsNormRope {
    type Saved = Saved;

    fn forward(&self, inputs: [FlexTensor; 4], tracked: [bool; 4]) -> (FlexTensor, Saved) {
        assert!(!tracked[2] && !tracked[3], "angles have no gradient");
        debug_assert!(self.bias.is_none(), "outputs of the CPU have their bias");
        let [x, weight, cos, sin] = inputs.map(dense);
        let [batch, length, features] = dims(&x);
        let saved = Saved {
            angles: Angles::of_pairs(&cos, &sin),
            x,
            weight,
        };
        let heads = saved.heads(self);
        let y = written(batch * length * features, |y| {
            let kernel = |first: usize, y: &mut [f32]| rotate_head(&heads, first / length, y);
            for_row_blocks(y, heads.width, length, kernel);
        });
        let y = tensor(y, [batch, self.heads, length, heads.width]);
        (y, saved)
    }

    fn backward(
        &self,
        saved: Saved,
        grad: FlexTensor,
        tracked: [bool; 4],
    ) -> [Option<FlexTensor>; 4] {
        let heads = saved.heads(self);
        let grad = dense_rows(grad);
        let grads = Heads::of(&grad);
        let rows = heads.x.len() / heads.features;
        let dx = tracked[0].then(|| {
            let dx = written(heads.x.len(), |dx| {
                let kernel = |first: usize, dx: &mut [f32]| input_grad(&heads, &grads, first, dx);
                for_row_blocks(dx, heads.features, block_rows(heads.features), kernel);
            });
            tensor_like(dx, &saved.x)
        });
        let dweight = tracked[1].then(|| {
            let sums = sum_blocks(rows, heads.width, |rows, sums| {
                add_weight_grad(&heads, &grads, rows, sums)
            });
            tensor_like(sums, &saved.weight)
        });
        [dx, dweight, None, None]
    }
}

impl Saved {
    fn heads(&self, op: &RmsNormRope) -> NormalHeads<'_> {
        let [_, length, features] = dims(&self.x);
        NormalHeads {
            x: values(&self.x),
            weight: values(&self.weight),
            angles: &self.angles,
            eps: op.eps,
            length,
            features,
            width: features / op.heads,
        }
    }
}

/// The angles of every number of a head: `x cos + swap_pairs(x) sin` rotates all pairs.
#[derive(Clone, Debug)]
pub(super) struct Angles {
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl Angles {
    fn of_pairs(cos: &FlexTensor, sin: &FlexTensor) -> Self {
        Self {
            cos: values(cos).iter().flat_map(|&cos| [cos, cos]).collect(),
            sin: values(sin).iter().flat_map(|&sin| [-sin, sin]).collect(),
        }
    }
}

/// x in rows of all heads, and what is done to a head.
struct NormalHeads<'a> {
    x: &'a [f32],
    weight: &'a [f32],
    angles: &'a Angles,
    eps: f32,
    length: usize,
    features: usize,
    width: usize,
}

impl NormalHeads<'_> {
    #[inline(always)]
    fn head(&self, row: usize, head: usize) -> &[f32] {
        &self.x[row * self.features + head * self.width..][..self.width]
    }

    #[inline(always)]
    fn angles(&self, position: usize) -> [&[f32]; 2] {
        [&self.angles.cos, &self.angles.sin].map(|t| &t[position * self.width..][..self.width])
    }

    #[inline(always)]
    fn scale<S: Simd>(&self, s: S, x: &[f32]) -> f32 {
        let squares = s.zip_sum([x], |[x]| s.mul(x, x));
        1.0 / (squares / self.width as f32 + self.eps).sqrt()
    }
}

simd_fn! {
    /// All positions of one head of one batch row.
    fn rotate_head(heads: &NormalHeads, index: usize, y: &mut [f32]) = rotate_head_kernel;
    fn input_grad(heads: &NormalHeads, grads: &Heads, first: usize, dx: &mut [f32]) = input_grad_kernel;
    fn add_weight_grad(heads: &NormalHeads, grads: &Heads, rows: Range<usize>, sums: &mut [f32]) = weight_grad_kernel;
    fn rotate_halves(x: &Heads, tables: &Tables, sign: f32, index: usize, y: &mut [f32]) = rotate_halves_kernel;
}

#[inline(always)]
fn rotate_head_kernel<S: Simd>(s: S, heads: &NormalHeads, index: usize, y: &mut [f32]) {
    let count = heads.features / heads.width;
    let (batch, head) = (index / count, index % count);
    for (position, y) in y.chunks_exact_mut(heads.width).enumerate() {
        let x = heads.head(batch * heads.length + position, head);
        let scale = s.splat(heads.scale(s, x));
        let [cos, sin] = heads.angles(position);
        s.zip_map([x, heads.weight, cos, sin], y, |[x, weight, cos, sin]| {
            let x = s.mul(s.mul(x, scale), weight);
            s.mul_add(s.swap_pairs(x), sin, s.mul(x, cos))
        });
    }
}

/// Turns a gradient back by the angle.
#[inline(always)]
fn turn_back<S: Simd>(s: S, grad: S::F32, cos: S::F32, sin: S::F32) -> S::F32 {
    s.sub(s.mul(grad, cos), s.mul(s.swap_pairs(grad), sin))
}

#[inline(always)]
fn input_grad_kernel<S: Simd>(
    s: S,
    heads: &NormalHeads,
    grads: &Heads,
    first: usize,
    dx: &mut [f32],
) {
    for (i, dx) in dx.chunks_exact_mut(heads.width).enumerate() {
        let count = heads.features / heads.width;
        let (row, head) = (first + i / count, i % count);
        let (batch, position) = (row / heads.length, row % heads.length);
        let (x, grad) = (heads.head(row, head), grads.row(batch, head, position));
        let [cos, sin] = heads.angles(position);
        s.zip_map(
            [grad, cos, sin, heads.weight],
            dx,
            |[grad, cos, sin, weight]| s.mul(turn_back(s, grad, cos, sin), weight),
        );
        let scale = heads.scale(s, x);
        let along = s.zip_sum([dx, x], |[d, x]| s.mul(d, x)) * scale * scale;
        let (scale, along) = (s.splat(scale), s.splat(along / heads.width as f32));
        s.accumulate([x], dx, |[x], d| s.mul(scale, s.sub(d, s.mul(x, along))));
    }
}

#[inline(always)]
fn weight_grad_kernel<S: Simd>(
    s: S,
    heads: &NormalHeads,
    grads: &Heads,
    rows: Range<usize>,
    sums: &mut [f32],
) {
    for row in rows {
        let (batch, position) = (row / heads.length, row % heads.length);
        let [cos, sin] = heads.angles(position);
        for head in 0..heads.features / heads.width {
            let x = heads.head(row, head);
            let grad = grads.row(batch, head, position);
            let scale = s.splat(heads.scale(s, x));
            s.accumulate([x, grad, cos, sin], sums, |[x, grad, cos, sin], sum| {
                s.mul_add(turn_back(s, grad, cos, sin), s.mul(x, scale), sum)
            });
        }
    }
}

/// Inputs: x, cos, sin; the angles get no gradient.
#[derive(Clone, Debug)]
pub(super) struct RopeHalf;

/// Angles `[B or 1, S, hd]`.
#[derive(Clone, Debug)]
pub(super) struct Tables {
    cos: FlexTensor,
    sin: FlexTensor,
}

impl Tables {
    #[inline(always)]
    fn halves<'a>(&self, table: &'a FlexTensor, batch: usize, position: usize) -> [&'a [f32]; 2] {
        let [tables, length, width] = dims(table);
        let row = (batch % tables) * length + position;
        let (first, second) = values(table)[row * width..][..width].split_at(width / 2);
        [first, second]
    }
}

impl FusedOp<Flex, 3> for RopeHalf {
    type Saved = Tables;

    fn forward(&self, [x, cos, sin]: [FlexTensor; 3], tracked: [bool; 3]) -> (FlexTensor, Tables) {
        assert!(!tracked[1] && !tracked[2], "angles have no gradient");
        let tables = Tables {
            cos: dense(cos),
            sin: dense(sin),
        };
        (rotate_all_halves(x, &tables, 1.0), tables)
    }

    fn backward(&self, tables: Tables, grad: FlexTensor, _: [bool; 3]) -> [Option<FlexTensor>; 3] {
        [Some(rotate_all_halves(grad, &tables, -1.0)), None, None]
    }
}

/// Sign 1 rotates, sign -1 is the transposed rotation.
fn rotate_all_halves(x: FlexTensor, tables: &Tables, sign: f32) -> FlexTensor {
    let x = dense_rows(x);
    let [batch, heads, length, width] = dims(&x);
    let rows = Heads::of(&x);
    let y = written(batch * heads * length * width, |y| {
        let kernel = |first: usize, y: &mut [f32]| {
            rotate_halves(&rows, tables, sign, first / length, y);
        };
        for_row_blocks(y, width, length, kernel);
    });
    tensor_like(y, &x)
}

/// `y1 = x1 cos1 - x2 sin1`, `y2 = x2 cos2 + x1 sin2`; transposed, the sines change places and signs.
#[inline(always)]
fn rotate_halves_kernel<S: Simd>(
    s: S,
    x: &Heads,
    tables: &Tables,
    sign: f32,
    index: usize,
    y: &mut [f32],
) {
    let [_, heads, _, width] = x.dims;
    let (batch, head) = (index / heads, index % heads);
    let sign_vector = s.splat(sign);
    for (position, y) in y.chunks_exact_mut(width).enumerate() {
        let (x1, x2) = x.row(batch, head, position).split_at(width / 2);
        let (y1, y2) = y.split_at_mut(width / 2);
        let [cos1, cos2] = tables.halves(&tables.cos, batch, position);
        let [mut sin1, mut sin2] = tables.halves(&tables.sin, batch, position);
        if sign < 0.0 {
            std::mem::swap(&mut sin1, &mut sin2);
        }
        s.zip_map([x1, x2, cos1, sin1], y1, |[x1, x2, cos, sin]| {
            s.sub(s.mul(x1, cos), s.mul(s.mul(x2, sin), sign_vector))
        });
        s.zip_map([x2, x1, cos2, sin2], y2, |[x2, x1, cos, sin]| {
            s.mul_add(s.mul(x1, sin), sign_vector, s.mul(x2, cos))
        });
    }
}
