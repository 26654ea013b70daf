//! What turns a projection into queries or keys: heads apart, RMS norm of each, rotation of neighbouring pairs.

use burn_backend::TensorMetadata;
use burn_backend::cubecl::dtype_to_elem_type;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use crate::rows::{Parameter, RowStrides, Rows, address_type, cubes, empty, units, vector_size};

const UNITS_MAX: usize = 256;

/// The angles of every position, one for each pair of neighbouring numbers of a head.
///
/// # Shapes
/// - cos, sin: `[S, hd / 2]`, f32
#[derive(Clone, Debug)]
pub struct Rotation {
    /// Their cosines.
    pub cos: CubeTensor,
    /// Their sines.
    pub sin: CubeTensor,
}

/// How a kernel goes through a token's heads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Steps {
    heads: usize,
    has_bias: bool,
    /// Vectors of a head.
    vectors: usize,
    units: usize,
}

impl Steps {
    fn all(&self) -> usize {
        self.heads * self.vectors
    }

    fn per_unit(&self) -> usize {
        self.all().div_ceil(self.units)
    }
}

/// `rotate(rms_norm(x + bias) weight)` of every head.
///
/// # Shapes
/// - x: `[B, S, heads * hd]`
/// - bias: `[heads * hd]`
/// - weight: `[hd]`
/// - output: `[B, heads, S, hd]`
pub fn heads(
    x: CubeTensor,
    bias: Option<CubeTensor>,
    weight: CubeTensor,
    rotation: Rotation,
    heads: usize,
    eps: f32,
) -> CubeTensor {
    let client = x.client.clone();
    let (x, rows) = Rows::of(x);
    let width = rows.width / heads;
    let y = empty(&x, [rows.batch, heads, rows.length, width], x.dtype);
    let (weight, cos, sin) = (
        into_contiguous(weight),
        into_contiguous(rotation.cos),
        into_contiguous(rotation.sin),
    );
    let bias = Parameter::of(bias, &x);
    let types = [x.dtype, bias.tensor.dtype, weight.dtype];
    let vector = vector_size(&client, &types, &[rows], &[width]);
    let steps = Steps {
        heads,
        has_bias: bias.given,
        vectors: width / vector,
        units: units(&client, rows.width / vector, UNITS_MAX),
    };
    heads_kernel::launch(
        &client,
        cubes(&client, rows.count()),
        CubeDim::new_1d(steps.units as u32),
        address_type(&[&x, &y]),
        vector,
        x.into_buffer_arg(),
        bias.tensor.into_buffer_arg(),
        weight.into_buffer_arg(),
        cos.into_buffer_arg(),
        sin.into_buffer_arg(),
        y.clone().into_buffer_arg(),
        rows.count(),
        rows.length,
        rows.strides(vector),
        eps,
        steps,
        types.map(dtype_to_elem_type),
    );
    y
}

#[cube(launch, address_type = "dynamic")]
fn heads_kernel<X: Float, B: Float, W: Float, N: Size>(
    x: &[Vector<X, N>],
    bias: &[Vector<B, N>],
    weight: &[Vector<W, N>],
    cos: &[f32],
    sin: &[f32],
    y: &mut [Vector<X, N>],
    rows: usize,
    length: usize,
    strides: RowStrides,
    eps: f32,
    #[comptime] steps: Steps,
    #[define(X, B, W)] _types: [ElemType; 3],
) {
    let row = CUBE_POS;
    if row >= rows {
        terminate!();
    }
    let (batch, position) = (row / length, row % length);
    let from = strides.start(batch, position);
    let mut values = Array::<Vector<f32, N>>::new(comptime!(steps.per_unit()));
    let mut sums = Shared::<[f32]>::new_slice(comptime!(steps.all()));
    #[unroll]
    for i in 0..comptime!(steps.per_unit()) {
        let at = UNIT_POS as usize + comptime!(i * steps.units);
        if at < comptime!(steps.all()) {
            values[i] = Vector::cast_from(x[from + at]);
            if comptime!(steps.has_bias) {
                values[i] += Vector::cast_from(bias[at]);
            }
            sums[at] = Vector::vector_sum(values[i] * values[i]);
        }
    }
    sync_cube();
    #[unroll]
    for i in 0..comptime!(steps.per_unit()) {
        let at = UNIT_POS as usize + comptime!(i * steps.units);
        if at < comptime!(steps.all()) {
            let (head, inner) = (at / steps.vectors, at % steps.vectors);
            let normal = normal_of::<N>(&sums, head, eps, steps);
            let mut value = values[i] * Vector::new(normal);
            value *= Vector::cast_from(weight[inner]);
            let turned = rotate::<N>(value, cos, sin, position, inner, 1.0f32, steps);
            let to = ((batch * steps.heads + head) * length + position) * steps.vectors + inner;
            y[to] = Vector::cast_from(turned);
        }
    }
}

/// One over the root of a head's mean square, from the sums of its vectors.
#[cube]
fn normal_of<N: Size>(
    sums: &Shared<[f32]>,
    head: usize,
    eps: f32,
    #[comptime] steps: Steps,
) -> f32 {
    let width = f32::cast_from(comptime!(steps.vectors) * N::value());
    (head_sum(sums, head, steps) / width + eps).inverse_sqrt()
}

#[cube]
fn head_sum(sums: &Shared<[f32]>, head: usize, #[comptime] steps: Steps) -> f32 {
    let mut sum = 0.0f32.runtime();
    #[unroll]
    for j in 0..steps.vectors {
        sum += sums[head * steps.vectors + j];
    }
    sum
}

/// Turns the pairs of a vector by their angles times `sign`.
#[cube]
fn rotate<N: Size>(
    x: Vector<f32, N>,
    cos: &[f32],
    sin: &[f32],
    position: usize,
    inner: usize,
    #[comptime] sign: f32,
    #[comptime] steps: Steps,
) -> Vector<f32, N> {
    let size = N::value();
    let pairs = comptime!(size / 2);
    let first = (position * steps.vectors + inner) * pairs;
    let mut y = x;
    #[unroll]
    for pair in 0..pairs {
        let (cos, sin) = (cos[first + pair], sin[first + pair] * sign);
        let (even, odd) = (
            x.extract(comptime!(2 * pair)),
            x.extract(comptime!(2 * pair + 1)),
        );
        y.insert(comptime!(2 * pair), even * cos - odd * sin);
        y.insert(comptime!(2 * pair + 1), even * sin + odd * cos);
    }
    y
}

/// The gradient of x in [`heads`], from that of the output.
///
/// # Shapes
/// - x and output: `[B, S, heads * hd]`
/// - grad: `[B, heads, S, hd]`
pub fn heads_grad(
    x: CubeTensor,
    bias: Option<CubeTensor>,
    weight: CubeTensor,
    rotation: Rotation,
    grad: CubeTensor,
    eps: f32,
) -> CubeTensor {
    let (shape, client) = (x.shape(), x.client.clone());
    let (x, rows) = Rows::of(x);
    let grad = match grad.meta.strides()[3] {
        1 => grad,
        _ => into_contiguous(grad),
    };
    let heads = grad.shape()[1];
    let width = rows.width / heads;
    let dx = empty(&x, shape, x.dtype);
    let (weight, cos, sin) = (
        into_contiguous(weight),
        into_contiguous(rotation.cos),
        into_contiguous(rotation.sin),
    );
    let bias = Parameter::of(bias, &x);
    let types = [x.dtype, bias.tensor.dtype, weight.dtype, grad.dtype];
    let strides: Vec<usize> = grad.meta.strides()[..3].to_vec();
    let vector = vector_size(&client, &types, &[rows], &[&strides[..], &[width]].concat());
    let steps = Steps {
        heads,
        has_bias: bias.given,
        vectors: width / vector,
        units: units(&client, rows.width / vector, UNITS_MAX),
    };
    heads_grad_kernel::launch(
        &client,
        cubes(&client, rows.count()),
        CubeDim::new_1d(steps.units as u32),
        address_type(&[&x, &grad]),
        vector,
        x.into_buffer_arg(),
        bias.tensor.into_buffer_arg(),
        weight.into_buffer_arg(),
        cos.into_buffer_arg(),
        sin.into_buffer_arg(),
        grad.into_buffer_arg(),
        dx.clone().into_buffer_arg(),
        rows.count(),
        rows.length,
        rows.strides(vector),
        strides[0] / vector,
        strides[1] / vector,
        strides[2] / vector,
        eps,
        steps,
        types.map(dtype_to_elem_type),
    );
    dx
}

#[cube(launch, address_type = "dynamic")]
fn heads_grad_kernel<X: Float, B: Float, W: Float, G: Float, N: Size>(
    x: &[Vector<X, N>],
    bias: &[Vector<B, N>],
    weight: &[Vector<W, N>],
    cos: &[f32],
    sin: &[f32],
    grad: &[Vector<G, N>],
    dx: &mut [Vector<X, N>],
    rows: usize,
    length: usize,
    strides: RowStrides,
    grad_batch_stride: usize,
    grad_head_stride: usize,
    grad_row_stride: usize,
    eps: f32,
    #[comptime] steps: Steps,
    #[define(X, B, W, G)] _types: [ElemType; 4],
) {
    let row = CUBE_POS;
    if row >= rows {
        terminate!();
    }
    let (batch, position) = (row / length, row % length);
    let from = strides.start(batch, position);
    let mut values = Array::<Vector<f32, N>>::new(comptime!(steps.per_unit()));
    let mut grads = Array::<Vector<f32, N>>::new(comptime!(steps.per_unit()));
    let mut squares = Shared::<[f32]>::new_slice(comptime!(steps.all()));
    let mut along = Shared::<[f32]>::new_slice(comptime!(steps.all()));
    #[unroll]
    for i in 0..comptime!(steps.per_unit()) {
        let at = UNIT_POS as usize + comptime!(i * steps.units);
        if at < comptime!(steps.all()) {
            let (head, inner) = (at / steps.vectors, at % steps.vectors);
            values[i] = Vector::cast_from(x[from + at]);
            if comptime!(steps.has_bias) {
                values[i] += Vector::cast_from(bias[at]);
            }
            let at_grad =
                batch * grad_batch_stride + head * grad_head_stride + position * grad_row_stride;
            let upstream = Vector::<f32, N>::cast_from(grad[at_grad + inner]);
            let turned = rotate::<N>(upstream, cos, sin, position, inner, -1.0f32, steps);
            grads[i] = turned * Vector::cast_from(weight[inner]);
            squares[at] = Vector::vector_sum(values[i] * values[i]);
            along[at] = Vector::vector_sum(grads[i] * values[i]);
        }
    }
    sync_cube();
    #[unroll]
    for i in 0..comptime!(steps.per_unit()) {
        let at = UNIT_POS as usize + comptime!(i * steps.units);
        if at < comptime!(steps.all()) {
            let head = at / steps.vectors;
            let normal = normal_of::<N>(&squares, head, eps, steps);
            let width = f32::cast_from(comptime!(steps.vectors) * N::value());
            let along = head_sum(&along, head, steps) * normal * normal / width;
            let inner = grads[i] - values[i] * Vector::new(along);
            dx[row * comptime!(steps.all()) + at] = Vector::cast_from(inner * Vector::new(normal));
        }
    }
}
