//! Normalization of rows: layer norm, modulated or affine, and RMS norm.

use burn_backend::TensorMetadata;
use burn_backend::cubecl::dtype_to_elem_type;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use crate::cube::cube_sum;
use crate::rows::{Parameter, RowStrides, Rows, address_type, cubes, empty, units, vector_size};

const UNITS_MAX: usize = 256;

/// `normal(x) (offset + scale) + shift`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Normalization {
    /// Whether the mean is taken off, as layer norm does and RMS norm does not.
    pub centered: bool,
    /// Whether one is added to the scale, as modulations have it.
    pub one_plus_scale: bool,
}

/// What of it a kernel does, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Steps {
    kind: Normalization,
    has_scale: bool,
    has_shift: bool,
    units: usize,
    /// Vectors of a row, and how many of them a unit has at most.
    vectors: usize,
    vectors_per_unit: usize,
}

impl Steps {
    fn new(
        kind: Normalization,
        client: &Client,
        vectors: usize,
        has_scale: bool,
        has_shift: bool,
    ) -> Self {
        let units = units(client, vectors, UNITS_MAX);
        Self {
            kind,
            has_scale,
            has_shift,
            units,
            vectors,
            vectors_per_unit: vectors.div_ceil(units),
        }
    }
}

/// # Shapes
/// - x and output: `[.., D]`
/// - scale, shift: `[D]`, or for x of `[B, S, D]` also `[B, 1, D]`; both of one type
pub fn normalize(
    x: CubeTensor,
    scale: Option<CubeTensor>,
    shift: Option<CubeTensor>,
    kind: Normalization,
    eps: f32,
) -> CubeTensor {
    let (shape, client) = (x.shape(), x.client.clone());
    let (x, rows) = Rows::of(x);
    let scale = Parameter::of(scale, &x);
    let shift = Parameter::of(shift, &scale.tensor);
    let y = empty(&x, shape, x.dtype);
    let types = [x.dtype, scale.tensor.dtype];
    let strides = [scale.batch_stride, shift.batch_stride];
    let vector = vector_size(&client, &types, &[rows], &strides);
    let steps = Steps::new(kind, &client, rows.width / vector, scale.given, shift.given);
    normalize_kernel::launch(
        &client,
        cubes(&client, rows.count()),
        CubeDim::new_1d(steps.units as u32),
        address_type(&[&x, &y]),
        vector,
        x.into_buffer_arg(),
        scale.tensor.into_buffer_arg(),
        shift.tensor.into_buffer_arg(),
        y.clone().into_buffer_arg(),
        rows.count(),
        rows.length,
        rows.strides(vector),
        scale.batch_stride / vector,
        shift.batch_stride / vector,
        eps,
        steps,
        types.map(dtype_to_elem_type),
    );
    y
}

#[cube(launch, address_type = "dynamic")]
fn normalize_kernel<X: Float, P: Float, N: Size>(
    x: &[Vector<X, N>],
    scale: &[Vector<P, N>],
    shift: &[Vector<P, N>],
    y: &mut [Vector<X, N>],
    rows: usize,
    length: usize,
    strides: RowStrides,
    scale_stride: usize,
    shift_stride: usize,
    eps: f32,
    #[comptime] steps: Steps,
    #[define(X, P)] _types: [ElemType; 2],
) {
    let row = CUBE_POS;
    if row >= rows {
        terminate!();
    }
    let batch = row / length;
    let from = strides.start(batch, row % length);
    let mut values = Array::<Vector<f32, N>>::new(steps.vectors_per_unit);
    load_row::<X, N>(x, from, &mut values, steps);
    let normal = scale_of::<N>(&mut values, eps, steps);
    #[unroll]
    for i in 0..steps.vectors_per_unit {
        let at = UNIT_POS as usize + comptime!(i * steps.units);
        if at < steps.vectors {
            let mut value = values[i] * Vector::new(normal);
            if comptime!(steps.has_scale) {
                value *= factor::<P, N>(scale[batch * scale_stride + at], steps);
            }
            if comptime!(steps.has_shift) {
                value += Vector::cast_from(shift[batch * shift_stride + at]);
            }
            y[row * steps.vectors + at] = Vector::cast_from(value);
        }
    }
}

/// The row's part of this unit; zeros where there is none.
#[cube]
fn load_row<X: Float, N: Size>(
    x: &[Vector<X, N>],
    from: usize,
    values: &mut Array<Vector<f32, N>>,
    #[comptime] steps: Steps,
) {
    #[unroll]
    for i in 0..steps.vectors_per_unit {
        let at = UNIT_POS as usize + comptime!(i * steps.units);
        values[i] = Vector::new(0.0f32);
        if at < steps.vectors {
            values[i] = Vector::cast_from(x[from + at]);
        }
    }
}

/// Centers the row if it is to be, and gives what makes it normal: one over the root of its mean square.
#[cube]
fn scale_of<N: Size>(
    values: &mut Array<Vector<f32, N>>,
    eps: f32,
    #[comptime] steps: Steps,
) -> f32 {
    let width = comptime!(steps.vectors) * N::value();
    if comptime!(steps.kind.centered) {
        let mut sum = Vector::<f32, N>::new(0.0f32);
        #[unroll]
        for i in 0..steps.vectors_per_unit {
            sum += values[i];
        }
        let mean = cube_sum(Vector::vector_sum(sum), steps.units) / f32::cast_from(width);
        #[unroll]
        for i in 0..steps.vectors_per_unit {
            if UNIT_POS as usize + comptime!(i * steps.units) < steps.vectors {
                values[i] -= Vector::new(mean);
            }
        }
    }
    let mut squares = Vector::<f32, N>::new(0.0f32);
    #[unroll]
    for i in 0..steps.vectors_per_unit {
        squares += values[i] * values[i];
    }
    let mean = cube_sum(Vector::vector_sum(squares), steps.units) / f32::cast_from(width);
    (mean + eps).inverse_sqrt()
}

#[cube]
fn factor<P: Float, N: Size>(scale: Vector<P, N>, #[comptime] steps: Steps) -> Vector<f32, N> {
    let mut factor = Vector::<f32, N>::cast_from(scale);
    if comptime!(steps.kind.one_plus_scale) {
        factor += Vector::new(1.0f32);
    }
    factor
}

/// The gradient of x, from that of the output.
///
/// # Shapes
/// - x, grad and output: `[.., D]`
/// - scale: as in [`normalize`]
pub fn normalize_grad(
    x: CubeTensor,
    scale: Option<CubeTensor>,
    grad: CubeTensor,
    kind: Normalization,
    eps: f32,
) -> CubeTensor {
    let (shape, client) = (x.shape(), x.client.clone());
    let (x, rows) = Rows::of(x);
    let (grad, grad_rows) = Rows::like(grad, &rows);
    let scale = Parameter::of(scale, &x);
    let dx = empty(&x, shape, x.dtype);
    let types = [x.dtype, scale.tensor.dtype, grad.dtype];
    let vector = vector_size(&client, &types, &[rows, grad_rows], &[scale.batch_stride]);
    let steps = Steps::new(kind, &client, rows.width / vector, scale.given, false);
    normalize_grad_kernel::launch(
        &client,
        cubes(&client, rows.count()),
        CubeDim::new_1d(steps.units as u32),
        address_type(&[&x, &grad]),
        vector,
        x.into_buffer_arg(),
        scale.tensor.into_buffer_arg(),
        grad.into_buffer_arg(),
        dx.clone().into_buffer_arg(),
        rows.count(),
        rows.length,
        rows.strides(vector),
        grad_rows.strides(vector),
        scale.batch_stride / vector,
        eps,
        steps,
        types.map(dtype_to_elem_type),
    );
    dx
}

#[cube(launch, address_type = "dynamic")]
fn normalize_grad_kernel<X: Float, P: Float, G: Float, N: Size>(
    x: &[Vector<X, N>],
    scale: &[Vector<P, N>],
    grad: &[Vector<G, N>],
    dx: &mut [Vector<X, N>],
    rows: usize,
    length: usize,
    strides: RowStrides,
    grad_strides: RowStrides,
    scale_stride: usize,
    eps: f32,
    #[comptime] steps: Steps,
    #[define(X, P, G)] _types: [ElemType; 3],
) {
    let row = CUBE_POS;
    if row >= rows {
        terminate!();
    }
    let (batch, position) = (row / length, row % length);
    let mut values = Array::<Vector<f32, N>>::new(steps.vectors_per_unit);
    let mut grads = Array::<Vector<f32, N>>::new(steps.vectors_per_unit);
    load_row::<X, N>(x, strides.start(batch, position), &mut values, steps);
    load_row::<G, N>(grad, grad_strides.start(batch, position), &mut grads, steps);
    let normal = scale_of::<N>(&mut values, eps, steps);
    let (mut sum, mut along) = (Vector::<f32, N>::new(0.0f32), Vector::<f32, N>::new(0.0f32));
    #[unroll]
    for i in 0..steps.vectors_per_unit {
        let at = UNIT_POS as usize + comptime!(i * steps.units);
        if at < steps.vectors {
            values[i] *= Vector::new(normal);
            if comptime!(steps.has_scale) {
                grads[i] *= factor::<P, N>(scale[batch * scale_stride + at], steps);
            }
            sum += grads[i];
            along += grads[i] * values[i];
        }
    }
    // What of the gradient changes the row's mean and its size has no effect on what is normal.
    let width = f32::cast_from(comptime!(steps.vectors) * N::value());
    let along = cube_sum(Vector::vector_sum(along), steps.units) / width;
    let mut mean = 0.0f32.runtime();
    if comptime!(steps.kind.centered) {
        mean = cube_sum(Vector::vector_sum(sum), steps.units) / width;
    }
    #[unroll]
    for i in 0..steps.vectors_per_unit {
        let at = UNIT_POS as usize + comptime!(i * steps.units);
        if at < steps.vectors {
            let inner = grads[i] - Vector::new(mean) - values[i] * Vector::new(along);
            dx[row * steps.vectors + at] = Vector::cast_from(inner * Vector::new(normal));
        }
    }
}
