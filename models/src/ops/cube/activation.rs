use burn::tensor::Shape;
use retouch_kernels as kernels;

use super::super::activation::{Activate, Activation, Gated};
use super::super::fused::FusedOp;
use super::{Cube, CubeFloat, apart, launch_one, like, named, with_bias};

impl From<Activation> for kernels::Activation {
    fn from(activation: Activation) -> Self {
        match activation {
            Activation::GeluTanh => Self::GeluTanh,
            Activation::GeluErf => Self::GeluErf,
            Activation::QuickGelu => Self::QuickGelu,
            Activation::Silu => Self::Silu,
        }
    }
}

impl FusedOp<Cube, 1> for Activate {
    /// x and, where there is one, the bias.
    type Saved = Vec<CubeFloat>;

    fn forward(&self, [x]: [CubeFloat; 1], [tracked]: [bool; 1]) -> (CubeFloat, Self::Saved) {
        let (activation, result) = (self.activation.into(), like(&x));
        let inputs = with_bias(vec![x], &self.bias);
        let saved = if tracked { inputs.clone() } else { Vec::new() };
        let y = launch_one("activate", inputs, result, move |inputs| {
            let ([x], mut bias) = apart(inputs);
            kernels::activate(x, bias.next(), activation)
        });
        (y, saved)
    }

    fn backward(
        &self,
        saved: Self::Saved,
        grad: CubeFloat,
        _: [bool; 1],
    ) -> [Option<CubeFloat>; 1] {
        let (activation, result) = (self.activation.into(), like(&saved[0]));
        let inputs = [vec![grad], saved].concat();
        let dx = launch_one("activate_grad", inputs, result, move |inputs| {
            let ([grad, x], mut bias) = apart(inputs);
            kernels::activate_grad(x, bias.next(), grad, activation)
        });
        [Some(dx)]
    }
}

impl FusedOp<Cube, 2> for Gated {
    type Saved = ();

    /// Only frozen encoders have such gates.
    fn takes(&self, _: &[Shape; 2], tracked: [bool; 2]) -> bool {
        tracked == [false; 2]
    }

    fn forward(&self, [gate, up]: [CubeFloat; 2], _: [bool; 2]) -> (CubeFloat, ()) {
        let activation = self.0.into();
        let result = like(&gate);
        let y = launch_one("activate_mul", vec![gate, up], result, move |inputs| {
            let [gate, up] = named(inputs);
            kernels::activate_mul(gate, up, activation)
        });
        (y, ())
    }

    fn backward(&self, (): (), _: CubeFloat, _: [bool; 2]) -> [Option<CubeFloat>; 2] {
        unreachable!("not taken where a gradient is wanted")
    }
}
