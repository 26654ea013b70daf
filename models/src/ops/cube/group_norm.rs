use burn::tensor::Shape;
use retouch_kernels as kernels;

use super::super::fused::FusedOp;
use super::super::group_norm::{After, GroupNorm};
use super::{Cube, CubeFloat, launch_one, like, named};

impl FusedOp<Cube, 3> for GroupNorm {
    type Saved = ();

    /// Only autoencoders have it, which are frozen.
    fn takes(&self, _: &[Shape; 3], tracked: [bool; 3]) -> bool {
        tracked == [false; 3]
    }

    fn forward(&self, inputs: [CubeFloat; 3], _: [bool; 3]) -> (CubeFloat, ()) {
        let Self { groups, eps, after } = *self;
        let silu = matches!(after, After::Silu);
        let result = like(&inputs[0]);
        let y = launch_one("group_norm", inputs.into(), result, move |inputs| {
            let [x, weight, bias] = named(inputs);
            kernels::group_norm(x, weight, bias, groups, eps, silu)
        });
        (y, ())
    }

    fn backward(&self, (): (), _: CubeFloat, _: [bool; 3]) -> [Option<CubeFloat>; 3] {
        unreachable!("not taken where a gradient is wanted")
    }
}
