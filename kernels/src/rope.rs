//! The rotary embedding over pairs half a head apart, as Qwen has it.

use burn_backend::TensorMetadata;
use burn_backend::cubecl::dtype_to_elem_type;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use crate::rows::{address_type, cubes, empty, vector_size};

const UNITS: usize = 128;

/// `x cos + rotate_half(x) sin`; transposed, the gradient of x from that of the output.
///
/// # Shapes
/// - x and output: `[B, H, S, hd]`
/// - cos, sin: `[B or 1, S, hd]`
pub fn rope_half(x: CubeTensor, cos: CubeTensor, sin: CubeTensor, transposed: bool) -> CubeTensor {
    let client = x.client.clone();
    let x = match x.meta.strides()[3] {
        1 => x,
        _ => into_contiguous(x),
    };
    let (cos, sin) = (into_contiguous(cos), into_contiguous(sin));
    let [batch, heads, length, width] = std::array::from_fn(|i| x.shape()[i]);
    let half = width / 2;
    let y = empty(&x, [batch, heads, length, width], x.dtype);
    let strides: Vec<usize> = x.meta.strides()[..3].to_vec();
    let types = [x.dtype, cos.dtype];
    let vector = vector_size(&client, &types, &[], &[&strides[..], &[half]].concat());
    let vectors = half / vector;
    let tables = cos.shape()[0];
    rope_half_kernel::launch(
        &client,
        cubes(&client, (batch * heads * length * vectors).div_ceil(UNITS)),
        CubeDim::new_1d(UNITS as u32),
        address_type(&[&x, &y, &cos]),
        vector,
        x.into_buffer_arg(),
        cos.into_buffer_arg(),
        sin.into_buffer_arg(),
        y.clone().into_buffer_arg(),
        batch * heads * length * vectors,
        heads,
        length,
        strides[0] / vector,
        strides[1] / vector,
        strides[2] / vector,
        tables,
        vectors,
        transposed,
        types.map(dtype_to_elem_type),
    );
    y
}

#[cube(launch, address_type = "dynamic")]
fn rope_half_kernel<X: Float, T: Float, N: Size>(
    x: &[Vector<X, N>],
    cos: &[Vector<T, N>],
    sin: &[Vector<T, N>],
    y: &mut [Vector<X, N>],
    work: usize,
    heads: usize,
    length: usize,
    batch_stride: usize,
    head_stride: usize,
    row_stride: usize,
    tables: usize,
    #[comptime] vectors: usize,
    #[comptime] transposed: bool,
    #[define(X, T)] _types: [ElemType; 2],
) {
    if ABSOLUTE_POS >= work {
        terminate!();
    }
    let (row, inner) = (ABSOLUTE_POS / vectors, ABSOLUTE_POS % vectors);
    let (position, head) = (row % length, row / length % heads);
    let batch = row / length / heads;
    let from = batch * batch_stride + head * head_stride + position * row_stride + inner;
    let first = Vector::<f32, N>::cast_from(x[from]);
    let second = Vector::<f32, N>::cast_from(x[from + vectors]);
    let table = (batch % tables * length + position) * comptime!(2 * vectors) + inner;
    let cos1 = Vector::<f32, N>::cast_from(cos[table]);
    let cos2 = Vector::<f32, N>::cast_from(cos[table + vectors]);
    let sin1 = Vector::<f32, N>::cast_from(sin[table]);
    let sin2 = Vector::<f32, N>::cast_from(sin[table + vectors]);
    let to = row * comptime!(2 * vectors) + inner;
    if comptime!(transposed) {
        y[to] = Vector::cast_from(first * cos1 + second * sin2);
        y[to + vectors] = Vector::cast_from(second * cos2 - first * sin1);
    } else {
        y[to] = Vector::cast_from(first * cos1 - second * sin1);
        y[to + vectors] = Vector::cast_from(second * cos2 + first * sin2);
    }
}
