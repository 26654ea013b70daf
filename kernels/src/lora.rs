//! What a low-rank adapter adds to a product.

use burn_backend::cubecl::dtype_to_elem_type;
use burn_backend::{DType, TensorMetadata};
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use crate::product::{like_rows, matrix, product, transposed};
use crate::rows::{Parameter, address_type, cubes, empty, vector_size};

const SCALE_UNITS: usize = 256;

/// Units of a cube across columns and down rows; each has a vector of columns of some rows.
const ACROSS: usize = 32;
const DOWN: usize = 4;
const ROWS_PER_UNIT: usize = 8;
const ROWS: usize = DOWN * ROWS_PER_UNIT;
/// How much of the rank is in shared memory at once.
const RANKS: usize = 16;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Steps {
    has_bias: bool,
    /// Whether `up` is `[r, D]`, as the first factor is in the way back.
    up_by_rank: bool,
}

/// A linear layer with a low-rank adapter: `x weight^T + bias + x (scale a)^T b^T`; gives `x (scale a)^T` besides.
///
/// # Shapes
/// - x: `[.., in]`
/// - weight: `[out, in]`, bias: `[out]`
/// - a: `[r, in]`, b: `[out, r]`
/// - outputs: `[.., out]` and `[.., r]`
pub fn lora_linear(
    x: CubeTensor,
    weight: CubeTensor,
    bias: Option<CubeTensor>,
    a: CubeTensor,
    b: CubeTensor,
    scale: f32,
) -> (CubeTensor, CubeTensor) {
    let (shape, dtype) = (x.shape(), x.dtype);
    let x = matrix(x);
    let a = scaled(a, scale, dtype);
    let down = product(x.clone(), transposed(a), dtype);
    let base = product(x, transposed(weight), dtype);
    let y = lora_add(base, bias, down.clone(), b, false, 1.0);
    (like_rows(y, &shape), like_rows(down, &shape))
}

/// The gradients of a and b in f32 and, where it is wanted, that of x.
///
/// # Shapes
/// - grad: `[.., out]`, x: `[.., in]`, down: as [`lora_linear`] gave it
pub fn lora_grads(
    grad: CubeTensor,
    x: CubeTensor,
    weight: CubeTensor,
    [a, b]: [CubeTensor; 2],
    down: CubeTensor,
    scale: f32,
    wants_x: bool,
) -> ([CubeTensor; 2], Option<CubeTensor>) {
    let (shape, dtype) = (x.shape(), x.dtype);
    let [grad, x, down] = [grad, x, down].map(matrix);
    let b_grad = product(transposed(grad.clone()), down, DType::F32);
    let down_grad = product(grad.clone(), scaled(b, scale, dtype), dtype);
    let a_grad = product(transposed(down_grad.clone()), x, DType::F32);
    let dx = wants_x.then(|| {
        let base = product(grad, weight, dtype);
        like_rows(lora_add(base, None, down_grad, a, true, 1.0), &shape)
    });
    ([a_grad, b_grad], dx)
}

/// `scale x` as `dtype`, without gaps.
fn scaled(x: CubeTensor, scale: f32, dtype: DType) -> CubeTensor {
    let x = into_contiguous(x);
    let y = empty(&x, x.shape(), dtype);
    let numbers = x.shape().num_elements();
    let vector = vector_size(&x.client, &[x.dtype, dtype], &[], &[numbers]);
    scaled_kernel::launch(
        &x.client.clone(),
        cubes(&x.client, (numbers / vector).div_ceil(SCALE_UNITS)),
        CubeDim::new_1d(SCALE_UNITS as u32),
        address_type(&[&x]),
        vector,
        x.clone().into_buffer_arg(),
        y.clone().into_buffer_arg(),
        scale,
        [x.dtype, dtype].map(dtype_to_elem_type),
    );
    y
}

#[cube(launch, address_type = "dynamic")]
fn scaled_kernel<X: Float, Y: Float, N: Size>(
    x: &[Vector<X, N>],
    y: &mut [Vector<Y, N>],
    scale: f32,
    #[define(X, Y)] _types: [ElemType; 2],
) {
    if ABSOLUTE_POS >= y.len() {
        terminate!();
    }
    let value = Vector::<f32, N>::cast_from(x[ABSOLUTE_POS]) * Vector::new(scale);
    y[ABSOLUTE_POS] = Vector::cast_from(value);
}

/// `base + bias + scale down up^T`, summed in f32 and rounded once.
///
/// # Shapes
/// - base and output: `[.., D]`, contiguous
/// - down: `[.., r]`
/// - up: `[D, r]`, or with `up_by_rank` `[r, D]`
/// - bias: `[D]`
pub fn lora_add(
    base: CubeTensor,
    bias: Option<CubeTensor>,
    down: CubeTensor,
    up: CubeTensor,
    up_by_rank: bool,
    scale: f32,
) -> CubeTensor {
    let (shape, client) = (base.shape(), base.client.clone());
    let (base, down, up) = (
        into_contiguous(base),
        into_contiguous(down),
        into_contiguous(up),
    );
    let bias = Parameter::of(bias, &base);
    let width = shape[shape.num_dims() - 1];
    let rows = shape.num_elements() / width;
    let rank = down.shape()[down.rank() - 1];
    let sum = empty(&base, shape, base.dtype);
    let types = [base.dtype, bias.tensor.dtype, down.dtype, up.dtype];
    let vector = vector_size(&client, &types[..2], &[], &[width]);
    let steps = Steps {
        has_bias: bias.given,
        up_by_rank,
    };
    let across = width.div_ceil(ACROSS * vector) as u32;
    lora_add_kernel::launch(
        &client,
        CubeCount::Static(across, rows.div_ceil(ROWS) as u32, 1),
        CubeDim::new_2d(ACROSS as u32, DOWN as u32),
        address_type(&[&base, &up]),
        vector,
        base.into_buffer_arg(),
        bias.tensor.into_buffer_arg(),
        down.into_buffer_arg(),
        up.into_buffer_arg(),
        sum.clone().into_buffer_arg(),
        rows,
        width,
        rank,
        scale,
        steps,
        types.map(dtype_to_elem_type),
    );
    sum
}

#[cube(launch, address_type = "dynamic")]
fn lora_add_kernel<X: Float, P: Float, L: Float, U: Float, N: Size>(
    base: &[Vector<X, N>],
    bias: &[Vector<P, N>],
    down: &[L],
    up: &[U],
    sum: &mut [Vector<X, N>],
    rows: usize,
    width: usize,
    rank: usize,
    scale: f32,
    #[comptime] steps: Steps,
    #[define(X, P, L, U)] _types: [ElemType; 4],
) {
    let size = N::value();
    let columns = comptime!(ACROSS * size);
    // A number apart, so that units which write a column of it do not all write to one bank.
    let pitch = comptime!(ACROSS + 1);
    let mut up_tile = Shared::<[Vector<f32, N>]>::new_slice(comptime!(RANKS * (ACROSS + 1)));
    let mut down_tile = Shared::<[f32]>::new_slice(comptime!(RANKS * ROWS));
    let (first_row, first_column) = (CUBE_POS_Y as usize * ROWS, CUBE_POS_X as usize * columns);
    let (across, below) = (UNIT_POS_X as usize, UNIT_POS_Y as usize);
    let unit = UNIT_POS as usize;
    let mut sums = Array::<Vector<f32, N>>::new(ROWS_PER_UNIT);
    #[unroll]
    for i in 0..ROWS_PER_UNIT {
        sums[i] = Vector::new(0.0f32);
    }
    for chunk in 0..rank.div_ceil(RANKS) {
        let first_rank = chunk * RANKS;
        sync_cube();
        #[unroll]
        for i in 0..comptime!((RANKS * ROWS).div_ceil(ACROSS * DOWN)) {
            let at = unit + comptime!(i * ACROSS * DOWN);
            let (row, k) = (first_row + at / RANKS, first_rank + at % RANKS);
            if at < comptime!(RANKS * ROWS) {
                down_tile[at] = 0.0f32;
                if row < rows && k < rank {
                    down_tile[at] = f32::cast_from(down[row * rank + k]);
                }
            }
        }
        #[unroll]
        for i in 0..comptime!(RANKS / DOWN) {
            let own = below + comptime!(i * DOWN);
            let k = first_rank + own;
            let mut value = Vector::<f32, N>::new(0.0f32);
            #[unroll]
            for j in 0..N::value() {
                let column = first_column + across * N::value() + j;
                if column < width && k < rank {
                    if comptime!(steps.up_by_rank) {
                        value.insert(j, f32::cast_from(up[k * width + column]));
                    } else {
                        value.insert(j, f32::cast_from(up[column * rank + k]));
                    }
                }
            }
            up_tile[own * pitch + across] = value;
        }
        sync_cube();
        for k in 0..RANKS {
            let up = up_tile[k * pitch + across];
            #[unroll]
            for i in 0..ROWS_PER_UNIT {
                let row = below + comptime!(i * DOWN);
                sums[i] += Vector::new(down_tile[row * RANKS + k]) * up;
            }
        }
    }
    let column = first_column / N::value() + across;
    let vectors = width / N::value();
    #[unroll]
    for i in 0..ROWS_PER_UNIT {
        let row = first_row + below + comptime!(i * DOWN);
        if row < rows && column < vectors {
            let at = row * vectors + column;
            let mut value = Vector::<f32, N>::cast_from(base[at]) + sums[i] * Vector::new(scale);
            if comptime!(steps.has_bias) {
                value += Vector::cast_from(bias[column]);
            }
            sum[at] = Vector::cast_from(value);
        }
    }
}
