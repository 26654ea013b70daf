//! Products by the backend's tuned kernels.

use burn_backend::DType;
use burn_cubecl::kernel::matmul::{MatmulStrategy, matmul};
use burn_cubecl::tensor::CubeTensor;

/// `lhs rhs` over the last two dimensions, summed in f32 and rounded to `dtype`.
///
/// # Panics
/// If the device has no kernel for these types.
pub fn product(lhs: CubeTensor, rhs: CubeTensor, dtype: DType) -> CubeTensor {
    matmul(lhs, rhs, None, MatmulStrategy::default(), dtype)
        .expect("the backend has a kernel for every product")
}
