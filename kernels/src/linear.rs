//! Linear layers.

use burn_backend::cubecl::dtype_to_elem_type;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use crate::activation::add_bias;
use crate::product::{like_rows, matrix, product, transposed};
use crate::rows::{Parameter, address_type, cubes, vector_size};

/// Up to so many rows of x, a product is a pass over the weight and no work for tensor cores.
pub const FEW_ROWS: usize = 8;

/// Units that share an output feature, and how many of those a cube has.
const UNITS_EACH: usize = 32;
const FEATURES: usize = 8;

/// `x weight^T + bias`
///
/// # Shapes
/// - x: `[.., in]`
/// - weight: `[out, in]`, bias: `[out]`
/// - output: `[.., out]`
pub fn linear(x: CubeTensor, weight: CubeTensor, bias: Option<CubeTensor>) -> CubeTensor {
    let (shape, dtype) = (x.meta.shape.clone(), x.dtype);
    let x = matrix(x);
    let y = if x.meta.shape[0] <= FEW_ROWS {
        of_few_rows(x, weight, bias)
    } else {
        let y = product(x, transposed(weight), dtype);
        match bias {
            Some(bias) => add_bias(y, bias),
            None => y,
        }
    };
    like_rows(y, &shape)
}

/// The gradient of x in [`linear`], from that of the output.
///
/// # Shapes
/// - grad: `[.., out]`
/// - weight: `[out, in]`
/// - output: `[.., in]`
pub fn linear_grad(grad: CubeTensor, weight: CubeTensor) -> CubeTensor {
    let (shape, dtype) = (grad.meta.shape.clone(), grad.dtype);
    like_rows(product(matrix(grad), weight, dtype), &shape)
}

fn of_few_rows(x: CubeTensor, weight: CubeTensor, bias: Option<CubeTensor>) -> CubeTensor {
    let (x, weight) = (into_contiguous(x), into_contiguous(weight));
    let client = x.client.clone();
    let bias = Parameter::of(bias, &x);
    let ([rows, width], features) = ([x.meta.shape[0], x.meta.shape[1]], weight.meta.shape[0]);
    let y = empty_device_contiguous_dtype(
        client.clone(),
        x.device.clone(),
        [rows, features].into(),
        x.dtype,
    );
    let vector = vector_size(&client, &[x.dtype, weight.dtype], &[], &[width]);
    few_rows_kernel::launch(
        &client,
        cubes(&client, features.div_ceil(FEATURES)),
        CubeDim::new_2d(UNITS_EACH as u32, FEATURES as u32),
        address_type(&[&x, &weight]),
        vector,
        x.clone().into_buffer_arg(),
        weight.clone().into_buffer_arg(),
        bias.tensor.clone().into_buffer_arg(),
        y.clone().into_buffer_arg(),
        features,
        rows,
        width / vector,
        bias.given,
        [x.dtype, weight.dtype, bias.tensor.dtype].map(dtype_to_elem_type),
    );
    y
}

#[cube(launch, address_type = "dynamic")]
fn few_rows_kernel<X: Float, W: Float, B: Float, N: Size>(
    x: &[Vector<X, N>],
    weight: &[Vector<W, N>],
    bias: &[B],
    y: &mut [X],
    features: usize,
    #[comptime] rows: usize,
    #[comptime] vectors: usize,
    #[comptime] has_bias: bool,
    #[define(X, W, B)] _types: [ElemType; 3],
) {
    let (unit, own) = (UNIT_POS_X as usize, UNIT_POS_Y as usize);
    let feature = CUBE_POS * FEATURES + own;
    let mut sums = Array::<Vector<f32, N>>::new(rows);
    #[unroll]
    for row in 0..rows {
        sums[row] = Vector::new(0.0f32);
    }
    if feature < features {
        for step in 0..comptime!(vectors.div_ceil(UNITS_EACH)) {
            let at = step * UNITS_EACH + unit;
            if at < vectors {
                let of_weight = Vector::<f32, N>::cast_from(weight[feature * vectors + at]);
                #[unroll]
                for row in 0..rows {
                    sums[row] += of_weight * Vector::cast_from(x[row * vectors + at]);
                }
            }
        }
    }
    // Unit by unit in a fixed order, so that the same numbers give the same bits.
    let mut partial = Shared::<[f32]>::new_slice(comptime!(rows * FEATURES * UNITS_EACH));
    #[unroll]
    for row in 0..rows {
        partial[(row * FEATURES + own) * UNITS_EACH + unit] = Vector::vector_sum(sums[row]);
    }
    sync_cube();
    let at = own * UNITS_EACH + unit;
    if at < comptime!(rows * FEATURES) {
        let (row, other) = (at / FEATURES, at % FEATURES);
        let feature = CUBE_POS * FEATURES + other;
        if feature < features {
            let mut sum = 0.0f32.runtime();
            for i in 0..UNITS_EACH {
                sum += partial[at * UNITS_EACH + i];
            }
            if comptime!(has_bias) {
                sum += f32::cast_from(bias[feature]);
            }
            y[row * features + feature] = X::cast_from(sum);
        }
    }
}
