use burn::tensor::Shape;
use retouch_kernels as kernels;

use super::super::activation::{Activation, Gated};
use super::super::fused::FusedOp;
use super::{Cube, CubeFloat, launch_one, like, named};

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

impl FusedOp<Cube, 1> for Activation {
    type Saved = Option<CubeFloat>;

    fn forward(&self, [x]: [CubeFloat; 1], [tracked]: [bool; 1]) -> (CubeFloat, Self::Saved) {
        let activation = (*self).into();
        let (result, saved) = (like(&x), tracked.then(|| x.clone()));
        let y = launch_one("activate", vec![x], result, move |inputs| {
            let [x] = named(inputs);
            kernels::activate(x, activation)
        });
        (y, saved)
    }

    fn backward(&self, x: Self::Saved, grad: CubeFloat, _: [bool; 1]) -> [Option<CubeFloat>; 1] {
        let (activation, x) = ((*self).into(), x.expect("saved"));
        let result = like(&x);
        let dx = launch_one("activate_grad", vec![x, grad], result, move |inputs| {
            let [x, grad] = named(inputs);
            kernels::activate_grad(x, grad, activation)
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
