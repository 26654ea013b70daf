//! Where a backward pass begins that has been computed down to some tensor by other means.

use burn::backend::TensorMetadata;
use burn::backend::tensor::FloatTensor;
use burn::prelude::*;
use burn::tensor::Shape;

use super::fused::{self, FusedOp, OpBackend};

/// A number whose gradient with respect to `x` is the given one. The number itself means nothing.
///
/// # Shapes
/// - x and gradient: the same
/// - output: `[1]`
pub(crate) fn surrogate<const D: usize>(x: Tensor<D>, gradient: Tensor<D>) -> Tensor<1> {
    assert_eq!(
        x.dims(),
        gradient.dims(),
        "a gradient is as large as what it is of"
    );
    match fused::apply(Surrogate, [x.into_dispatch(), gradient.into_dispatch()]) {
        Ok(number) => Tensor::from_dispatch(number),
        Err(inputs) => {
            let [x, gradient] = inputs.map(Tensor::<D>::from_dispatch);
            (x * gradient).sum()
        }
    }
}

/// Inputs: x and the gradient. A sum of products would do, but costs passes over both, forth and back.
#[derive(Clone, Debug)]
struct Surrogate;

impl<B: OpBackend> FusedOp<B, 2> for Surrogate {
    type Saved = FloatTensor<B>;

    fn forward(
        &self,
        [x, gradient]: [FloatTensor<B>; 2],
        _: [bool; 2],
    ) -> (FloatTensor<B>, Self::Saved) {
        let (device, dtype) = (x.device(), x.dtype().into());
        (B::float_zeros(Shape::from([1]), &device, dtype), gradient)
    }

    fn backward(
        &self,
        gradient: Self::Saved,
        _: FloatTensor<B>,
        tracked: [bool; 2],
    ) -> [Option<FloatTensor<B>>; 2] {
        assert!(!tracked[1], "the gradient is given");
        [Some(gradient), None]
    }
}
