//! The gated residual of adaptive layer norm blocks.

use burn_backend::TensorMetadata;
use burn_backend::cubecl::dtype_to_elem_type;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use crate::rows::{Parameter, Rows, address_type, cubes, empty, units, vector_size};

const UNITS_MAX: usize = 256;

/// `x + y gate`
///
/// # Shapes
/// - x, y and output: `[B, S, D]`
/// - gate: `[B, 1, D]`
pub fn gate_add(x: CubeTensor, y: CubeTensor, gate: CubeTensor) -> CubeTensor {
    launch(Some(x), y, gate)
}

/// The gradient of y in `x + y gate`, from that of the sum.
///
/// # Shapes
/// - grad and output: `[B, S, D]`
/// - gate: `[B, 1, D]`
pub fn gate_input_grad(grad: CubeTensor, gate: CubeTensor) -> CubeTensor {
    launch(None, grad, gate)
}

fn launch(x: Option<CubeTensor>, y: CubeTensor, gate: CubeTensor) -> CubeTensor {
    let (shape, client) = (y.shape(), y.client.clone());
    let (y, rows) = Rows::of(y);
    let has_x = x.is_some();
    let (x, x_rows) = Rows::like(x.unwrap_or_else(|| y.clone()), &rows);
    let gate = Parameter::of(Some(gate), &y);
    let sum = empty(&x, shape, x.dtype);
    let types = [x.dtype, y.dtype, gate.tensor.dtype];
    let vector = vector_size(&client, &types, &[rows, x_rows], &[gate.batch_stride]);
    let vectors = rows.width / vector;
    let units = units(&client, vectors, UNITS_MAX);
    gate_kernel::launch(
        &client,
        cubes(&client, rows.count()),
        CubeDim::new_1d(units as u32),
        address_type(&[&x, &y]),
        vector,
        x.into_buffer_arg(),
        y.into_buffer_arg(),
        gate.tensor.into_buffer_arg(),
        sum.clone().into_buffer_arg(),
        rows.count(),
        rows.length,
        x_rows.batch_stride / vector,
        x_rows.row_stride / vector,
        rows.batch_stride / vector,
        rows.row_stride / vector,
        gate.batch_stride / vector,
        has_x,
        vectors,
        units,
        types.map(dtype_to_elem_type),
    );
    sum
}

#[cube(launch, address_type = "dynamic")]
fn gate_kernel<X: Float, Y: Float, P: Float, N: Size>(
    x: &[Vector<X, N>],
    y: &[Vector<Y, N>],
    gate: &[Vector<P, N>],
    sum: &mut [Vector<X, N>],
    rows: usize,
    length: usize,
    x_batch_stride: usize,
    x_row_stride: usize,
    batch_stride: usize,
    row_stride: usize,
    gate_stride: usize,
    #[comptime] has_x: bool,
    #[comptime] vectors: usize,
    #[comptime] units: usize,
    #[define(X, Y, P)] _types: [ElemType; 3],
) {
    let row = CUBE_POS;
    if row >= rows {
        terminate!();
    }
    let (batch, position) = (row / length, row % length);
    #[unroll]
    for i in 0..comptime!(vectors.div_ceil(units)) {
        let at = UNIT_POS as usize + comptime!(i * units);
        if at < vectors {
            let y =
                Vector::<f32, N>::cast_from(y[batch * batch_stride + position * row_stride + at]);
            let mut value = y * Vector::cast_from(gate[batch * gate_stride + at]);
            if comptime!(has_x) {
                value +=
                    Vector::cast_from(x[batch * x_batch_stride + position * x_row_stride + at]);
            }
            sum[row * vectors + at] = Vector::cast_from(value);
        }
    }
}
