//! Products by the backend's tuned kernels.

use burn_backend::{DType, Shape};
use burn_cubecl::kernel::matmul::{MatmulStrategy, matmul};
use burn_cubecl::ops::reshape;
use burn_cubecl::tensor::CubeTensor;

/// `lhs rhs` over the last two dimensions, summed in f32 and rounded to `dtype`.
///
/// # Panics
/// If the device has no kernel for these types.
pub fn product(lhs: CubeTensor, rhs: CubeTensor, dtype: DType) -> CubeTensor {
    matmul(lhs, rhs, None, MatmulStrategy::default(), dtype)
        .expect("the backend has a kernel for every product")
}

/// All but the last dimension as rows.
pub(crate) fn matrix(x: CubeTensor) -> CubeTensor {
    let shape = &x.meta.shape;
    let width = shape[shape.num_dims() - 1];
    let rows = shape.num_elements() / width;
    reshape(x, [rows, width].into())
}

/// The rows of a matrix with the leading dimensions of `shape`.
pub(crate) fn like_rows(x: CubeTensor, shape: &Shape) -> CubeTensor {
    let (mut shape, last) = (shape.clone(), shape.num_dims() - 1);
    shape[last] = x.meta.shape[1];
    reshape(x, shape)
}

pub(crate) fn transposed(mut x: CubeTensor) -> CubeTensor {
    x.meta.shape.swap(0, 1);
    x.meta.strides.swap(0, 1);
    x
}
