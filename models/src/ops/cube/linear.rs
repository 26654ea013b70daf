use burn::backend::TensorMetadata;
use burn::tensor::Shape;
use retouch_kernels as kernels;

use super::super::fused::FusedOp;
use super::super::linear::Linear;
use super::{Cube, CubeFloat, Result, apart, launch_one, like, named};

impl<const N: usize> FusedOp<Cube, N> for Linear {
    /// What x looked like, and the weight.
    type Saved = (Result, CubeFloat);

    /// Weights are trained with everything else or not at all, in plain ops then.
    fn takes(&self, _: &[Shape; N], tracked: [bool; N]) -> bool {
        !tracked[1..].contains(&true)
    }

    fn forward(&self, inputs: [CubeFloat; N], _: [bool; N]) -> (CubeFloat, Self::Saved) {
        let saved = (like(&inputs[0]), inputs[1].clone());
        let result = with_width(&inputs[0], inputs[1].shape()[0]);
        let y = launch_one("linear", inputs.into(), result, |inputs| {
            let ([x, weight], mut bias) = apart(inputs);
            kernels::linear(x, weight, bias.next())
        });
        (y, saved)
    }

    fn backward(
        &self,
        (x, weight): Self::Saved,
        grad: CubeFloat,
        _: [bool; N],
    ) -> [Option<CubeFloat>; N] {
        let mut dx = Some(launch_one("linear_grad", vec![grad, weight], x, |inputs| {
            let [grad, weight] = named(inputs);
            kernels::linear_grad(grad, weight)
        }));
        std::array::from_fn(|_| dx.take())
    }
}

/// The rows of x, with another width.
pub(super) fn with_width(x: &CubeFloat, width: usize) -> Result {
    let (mut shape, dtype) = like(x);
    let last = shape.num_dims() - 1;
    shape[last] = width;
    (shape, dtype)
}
