//! The gated residual of adaptive layer norm blocks.

use burn_backend::TensorMetadata;
use burn_backend::cubecl::dtype_to_elem_type;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use crate::rows::{Parameter, RowStrides, Rows, address_type, cubes, empty, units, vector_size};

const UNITS_MAX: usize = 256;

/// `x + (y + bias) gate`
///
/// # Shapes
/// - x, y and output: `[B, S, D]`
/// - bias: `[D]`
/// - gate: `[B, 1, D]`
pub fn gate_add(
    x: CubeTensor,
    y: CubeTensor,
    bias: Option<CubeTensor>,
    gate: CubeTensor,
) -> CubeTensor {
    launch(Some(x), y, bias, gate)
}

/// The gradient of y in [`gate_add`], from that of the sum.
///
/// # Shapes
/// - grad and output: `[B, S, D]`
/// - gate: `[B, 1, D]`
pub fn gate_input_grad(grad: CubeTensor, gate: CubeTensor) -> CubeTensor {
    launch(None, grad, None, gate)
}

/// What a kernel does with a row, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Steps {
    has_x: bool,
    has_bias: bool,
    vectors: usize,
    units: usize,
}

fn launch(
    x: Option<CubeTensor>,
    y: CubeTensor,
    bias: Option<CubeTensor>,
    gate: CubeTensor,
) -> CubeTensor {
    let (shape, client) = (y.shape(), y.client.clone());
    let (y, rows) = Rows::of(y);
    let has_x = x.is_some();
    let (x, x_rows) = Rows::like(x.unwrap_or_else(|| y.clone()), &rows);
    let (bias, gate) = (Parameter::of(bias, &y), Parameter::of(Some(gate), &y));
    let sum = empty(&x, shape, x.dtype);
    let types = [x.dtype, y.dtype, bias.tensor.dtype, gate.tensor.dtype];
    let vector = vector_size(&client, &types, &[rows, x_rows], &[gate.batch_stride]);
    let vectors = rows.width / vector;
    let steps = Steps {
        has_x,
        has_bias: bias.given,
        vectors,
        units: units(&client, vectors, UNITS_MAX),
    };
    gate_kernel::launch(
        &client,
        cubes(&client, rows.count()),
        CubeDim::new_1d(steps.units as u32),
        address_type(&[&x, &y]),
        vector,
        x.into_buffer_arg(),
        y.into_buffer_arg(),
        bias.tensor.into_buffer_arg(),
        gate.tensor.into_buffer_arg(),
        sum.clone().into_buffer_arg(),
        rows.count(),
        rows.length,
        x_rows.strides(vector),
        rows.strides(vector),
        gate.batch_stride / vector,
        steps,
        types.map(dtype_to_elem_type),
    );
    sum
}

#[cube(launch, address_type = "dynamic")]
fn gate_kernel<X: Float, Y: Float, B: Float, P: Float, N: Size>(
    x: &[Vector<X, N>],
    y: &[Vector<Y, N>],
    bias: &[Vector<B, N>],
    gate: &[Vector<P, N>],
    sum: &mut [Vector<X, N>],
    rows: usize,
    length: usize,
    x_strides: RowStrides,
    strides: RowStrides,
    gate_stride: usize,
    #[comptime] steps: Steps,
    #[define(X, Y, B, P)] _types: [ElemType; 4],
) {
    let row = CUBE_POS;
    if row >= rows {
        terminate!();
    }
    let (batch, position) = (row / length, row % length);
    #[unroll]
    for i in 0..comptime!(steps.vectors.div_ceil(steps.units)) {
        let at = UNIT_POS as usize + comptime!(i * steps.units);
        if at < steps.vectors {
            let from = strides.start(batch, position) + at;
            let mut value = Vector::<f32, N>::cast_from(y[from]);
            if comptime!(steps.has_bias) {
                value += Vector::cast_from(bias[at]);
            }
            value *= Vector::cast_from(gate[batch * gate_stride + at]);
            if comptime!(steps.has_x) {
                let from = x_strides.start(batch, position) + at;
                value += Vector::cast_from(x[from]);
            }
            sum[row * steps.vectors + at] = Vector::cast_from(value);
        }
    }
}
