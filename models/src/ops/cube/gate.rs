use burn::backend::ops::FloatTensorOps;
use retouch_kernels as kernels;

use super::super::fused::FusedOp;
use super::super::gate::GateAdd;
use super::norm::summed_over_rows;
use super::{Cube, CubeFloat, apart, biased, launch_one, like, named, with_bias};

/// The gate, and what it was multiplied with where that is needed.
pub(crate) type Saved = (CubeFloat, Option<CubeFloat>);

impl FusedOp<Cube, 3> for GateAdd {
    type Saved = Saved;

    fn forward(&self, [x, y, gate]: [CubeFloat; 3], tracked: [bool; 3]) -> (CubeFloat, Saved) {
        let result = like(&x);
        let inputs = with_bias(vec![x, y.clone(), gate.clone()], &self.bias);
        let saved = (gate, tracked[2].then(|| biased(y, &self.bias)));
        let sum = launch_one("gate_add", inputs, result, |inputs| {
            let ([x, y, gate], mut bias) = apart(inputs);
            kernels::gate_add(x, y, bias.next(), gate)
        });
        (sum, saved)
    }

    fn backward(
        &self,
        (gate, y): Saved,
        grad: CubeFloat,
        tracked: [bool; 3],
    ) -> [Option<CubeFloat>; 3] {
        let dy = tracked[1].then(|| {
            let inputs = vec![grad.clone(), gate];
            launch_one("gate_input_grad", inputs, like(&grad), |inputs| {
                let [grad, gate] = named(inputs);
                kernels::gate_input_grad(grad, gate)
            })
        });
        let dgate = y.map(|y| summed_over_rows(Cube::float_mul(grad.clone(), y)));
        [tracked[0].then_some(grad), dy, dgate]
    }
}
