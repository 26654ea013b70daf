use burn::backend::TensorMetadata;
use burn::tensor::Shape;
use retouch_kernels::{self as kernels, Rotation};

use super::super::fused::FusedOp;
use super::super::rope::{RmsNormRope, RopeHalf};
use super::{Cube, CubeFloat, apart, launch_one, like, named, with_bias};

impl FusedOp<Cube, 4> for RmsNormRope {
    /// The inputs and, where there is one, the bias.
    type Saved = Vec<CubeFloat>;

    /// Weights of norms are trained with everything else or not at all, in plain ops then.
    fn takes(&self, _: &[Shape; 4], tracked: [bool; 4]) -> bool {
        !tracked[1]
    }

    fn forward(&self, inputs: [CubeFloat; 4], tracked: [bool; 4]) -> (CubeFloat, Self::Saved) {
        assert!(!tracked[2] && !tracked[3], "angles have no gradient");
        let Self { heads, eps, .. } = *self;
        let shape = inputs[0].shape();
        let [batch, length, features] = [shape[0], shape[1], shape[2]];
        let shape = Shape::from([batch, heads, length, features / heads]);
        let result = (shape, inputs[0].dtype());
        let inputs = with_bias(inputs.into(), &self.bias);
        let saved = if tracked[0] {
            inputs.clone()
        } else {
            Vec::new()
        };
        let y = launch_one("heads", inputs, result, move |inputs| {
            let ([x, weight, cos, sin], mut bias) = apart(inputs);
            kernels::heads(x, bias.next(), weight, Rotation { cos, sin }, heads, eps)
        });
        (y, saved)
    }

    fn backward(
        &self,
        saved: Self::Saved,
        grad: CubeFloat,
        tracked: [bool; 4],
    ) -> [Option<CubeFloat>; 4] {
        let eps = self.eps;
        let dx = tracked[0].then(|| {
            let result = like(&saved[0]);
            let inputs = [vec![grad], saved].concat();
            launch_one("heads_grad", inputs, result, move |inputs| {
                let ([grad, x, weight, cos, sin], mut bias) = apart(inputs);
                kernels::heads_grad(x, bias.next(), weight, Rotation { cos, sin }, grad, eps)
            })
        });
        [dx, None, None, None]
    }
}

impl FusedOp<Cube, 3> for RopeHalf {
    type Saved = [CubeFloat; 2];

    fn forward(
        &self,
        [x, cos, sin]: [CubeFloat; 3],
        tracked: [bool; 3],
    ) -> (CubeFloat, Self::Saved) {
        assert!(!tracked[1] && !tracked[2], "angles have no gradient");
        let saved = [cos.clone(), sin.clone()];
        (turned(x, cos, sin, false), saved)
    }

    fn backward(
        &self,
        [cos, sin]: Self::Saved,
        grad: CubeFloat,
        _: [bool; 3],
    ) -> [Option<CubeFloat>; 3] {
        [Some(turned(grad, cos, sin, true)), None, None]
    }
}

fn turned(x: CubeFloat, cos: CubeFloat, sin: CubeFloat, transposed: bool) -> CubeFloat {
    let result = like(&x);
    launch_one("rope_half", vec![x, cos, sin], result, move |inputs| {
        let [x, cos, sin] = named(inputs);
        kernels::rope_half(x, cos, sin, transposed)
    })
}
