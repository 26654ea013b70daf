//! Activations, alone and gating another tensor.

use burn::prelude::*;
use burn_flex::FlexTensor;

use super::LinearOutput;
use super::fused::{self, Flex, FusedOp};
use super::plain;
use super::simd::{Simd, simd_fn};
use super::values::{dense, map, tensor_like, values};

/// GELU in its tanh approximation.
pub fn gelu_tanh<const D: usize>(x: impl Into<LinearOutput<D>>) -> Tensor<D> {
    activate(Activation::GeluTanh, x)
}

/// GELU with the error function.
pub fn gelu_erf<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    activate(Activation::GeluErf, x)
}

/// `x * sigmoid(1.702 x)`, CLIP's GELU.
pub fn quick_gelu<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    activate(Activation::QuickGelu, x)
}

/// `x * sigmoid(x)`.
pub fn silu<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    activate(Activation::Silu, x)
}

/// `silu(gate) * up`, both of one shape.
pub fn silu_mul<const D: usize>(gate: Tensor<D>, up: Tensor<D>) -> Tensor<D> {
    gated(Activation::Silu, gate, up)
}

/// `gelu_tanh(gate) * up`, both of one shape.
pub fn gelu_tanh_mul<const D: usize>(gate: Tensor<D>, up: Tensor<D>) -> Tensor<D> {
    gated(Activation::GeluTanh, gate, up)
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Activation {
    GeluTanh,
    GeluErf,
    QuickGelu,
    Silu,
}

fn activate<const D: usize>(activation: Activation, x: impl Into<LinearOutput<D>>) -> Tensor<D> {
    let (x, bias) = x.into().apart();
    let op = Activate {
        activation,
        bias: bias.clone(),
    };
    match fused::apply(op, [x.into_dispatch()]) {
        Ok(y) => Tensor::from_dispatch(y),
        Err([x]) => {
            let x = LinearOutput::of((Tensor::from_dispatch(x), bias));
            plain_activation(activation, x.into_tensor())
        }
    }
}

fn gated<const D: usize>(activation: Activation, gate: Tensor<D>, up: Tensor<D>) -> Tensor<D> {
    assert_eq!(
        gate.dims(),
        up.dims(),
        "a gate is as large as what it gates"
    );
    let inputs = [gate.into_dispatch(), up.into_dispatch()];
    match fused::apply(Gated(activation), inputs) {
        Ok(y) => Tensor::from_dispatch(y),
        Err([gate, up]) => {
            let gate = plain_activation(activation, Tensor::from_dispatch(gate));
            gate * Tensor::from_dispatch(up)
        }
    }
}

fn plain_activation<const D: usize>(activation: Activation, x: Tensor<D>) -> Tensor<D> {
    match activation {
        Activation::GeluTanh => plain::gelu_tanh(x),
        Activation::GeluErf => plain::gelu_erf(x),
        Activation::QuickGelu => plain::quick_gelu(x),
        Activation::Silu => plain::silu(x),
    }
}

/// One of them, of a linear layer's output.
#[derive(Clone, Debug)]
pub(super) struct Activate {
    pub(super) activation: Activation,
    /// To be added to x; the CPU's outputs have it.
    pub(super) bias: Option<Tensor<1>>,
}

impl FusedOp<Flex, 1> for Activate {
    type Saved = Option<FlexTensor>;

    fn forward(&self, [x]: [FlexTensor; 1], [tracked]: [bool; 1]) -> (FlexTensor, Self::Saved) {
        debug_assert!(self.bias.is_none(), "outputs of the CPU have their bias");
        let x = dense(x);
        let y = map([values(&x)], |[x], y| forward(self.activation, x, y));
        (tensor_like(y, &x), tracked.then_some(x))
    }

    fn backward(&self, x: Self::Saved, grad: FlexTensor, _: [bool; 1]) -> [Option<FlexTensor>; 1] {
        let (x, grad) = (x.expect("saved"), dense(grad));
        let dx = map([values(&x), values(&grad)], |[x, grad], dx| {
            backward(self.activation, x, grad, dx)
        });
        [Some(tensor_like(dx, &x))]
    }
}

/// `activation(gate) * up`.
#[derive(Clone, Debug)]
pub(super) struct Gated(pub(super) Activation);

impl FusedOp<Flex, 2> for Gated {
    type Saved = [FlexTensor; 2];

    fn forward(&self, inputs: [FlexTensor; 2], _: [bool; 2]) -> (FlexTensor, Self::Saved) {
        let [gate, up] = inputs.map(dense);
        let y = map([values(&gate), values(&up)], |[gate, up], y| {
            gated_forward(self.0, gate, up, y)
        });
        (tensor_like(y, &gate), [gate, up])
    }

    fn backward(
        &self,
        [gate, up]: Self::Saved,
        grad: FlexTensor,
        tracked: [bool; 2],
    ) -> [Option<FlexTensor>; 2] {
        let grad = dense(grad);
        let all = [values(&gate), values(&up), values(&grad)];
        let of_gate = || {
            map(all, |[gate, up, grad], dx| {
                gated_backward(self.0, gate, up, grad, dx)
            })
        };
        let of_up = || {
            map([all[0], all[2]], |[gate, grad], dx| {
                gated_forward(self.0, gate, grad, dx)
            })
        };
        [
            tracked[0].then(|| tensor_like(of_gate(), &gate)),
            tracked[1].then(|| tensor_like(of_up(), &gate)),
        ]
    }
}

simd_fn! {
    fn forward(activation: Activation, x: &[f32], y: &mut [f32]) = forward_kernel;
    fn backward(activation: Activation, x: &[f32], grad: &[f32], dx: &mut [f32]) = backward_kernel;
    fn gated_forward(activation: Activation, x: &[f32], up: &[f32], y: &mut [f32]) = gated_forward_kernel;
    fn gated_backward(activation: Activation, x: &[f32], up: &[f32], grad: &[f32], dx: &mut [f32]) = gated_backward_kernel;
}

#[inline(always)]
fn forward_kernel<S: Simd>(s: S, activation: Activation, x: &[f32], y: &mut [f32]) {
    s.zip_map([x], y, |[x]| s.mul(x, gate(s, activation, x).0));
}

#[inline(always)]
fn backward_kernel<S: Simd>(s: S, activation: Activation, x: &[f32], grad: &[f32], dx: &mut [f32]) {
    s.zip_map([x, grad], dx, |[x, grad]| {
        s.mul(grad, derivative(s, activation, x))
    });
}

#[inline(always)]
fn gated_forward_kernel<S: Simd>(
    s: S,
    activation: Activation,
    x: &[f32],
    up: &[f32],
    y: &mut [f32],
) {
    s.zip_map([x, up], y, |[x, up]| {
        s.mul(s.mul(x, gate(s, activation, x).0), up)
    });
}

#[inline(always)]
fn gated_backward_kernel<S: Simd>(
    s: S,
    activation: Activation,
    x: &[f32],
    up: &[f32],
    grad: &[f32],
    dx: &mut [f32],
) {
    s.zip_map([x, up, grad], dx, |[x, up, grad]| {
        s.mul(s.mul(grad, up), derivative(s, activation, x))
    });
}

/// Every activation here is `x * gate(x)`: the gate and its derivative.
#[inline(always)]
fn gate<S: Simd>(s: S, activation: Activation, x: S::F32) -> (S::F32, S::F32) {
    match activation {
        Activation::GeluTanh => tanh_gate(s, x),
        Activation::GeluErf => erf_gate(s, x),
        Activation::QuickGelu => sigmoid_gate(s, x, 1.702),
        Activation::Silu => sigmoid_gate(s, x, 1.0),
    }
}

#[inline(always)]
fn derivative<S: Simd>(s: S, activation: Activation, x: S::F32) -> S::F32 {
    let (gate, slope) = gate(s, activation, x);
    s.mul_add(x, slope, gate)
}

#[inline(always)]
fn sigmoid_gate<S: Simd>(s: S, x: S::F32, factor: f32) -> (S::F32, S::F32) {
    let factor = s.splat(factor);
    let gate = s.sigmoid(s.mul(factor, x));
    let slope = s.mul(gate, s.sub(s.splat(1.0), gate));
    (gate, s.mul(factor, slope))
}

/// `(1 + tanh u) / 2 = sigmoid(2u)` with `u = sqrt(2 / pi) (x + 0.044715 x^3)`.
#[inline(always)]
fn tanh_gate<S: Simd>(s: S, x: S::F32) -> (S::F32, S::F32) {
    const TWICE_ROOT: f32 = 1.595_769;
    const CUBIC: f32 = 0.044_715;
    let square = s.mul(x, x);
    let one = s.splat(1.0);
    let inner = s.mul(x, s.mul_add(s.splat(CUBIC), square, one));
    let gate = s.sigmoid(s.mul(s.splat(TWICE_ROOT), inner));
    let inner_slope = s.mul(
        s.splat(TWICE_ROOT),
        s.mul_add(s.splat(3.0 * CUBIC), square, one),
    );
    let slope = s.mul(s.mul(gate, s.sub(one, gate)), inner_slope);
    (gate, slope)
}

/// The normal distribution function, by Abramowitz and Stegun's formula 7.1.26, and its density.
#[inline(always)]
fn erf_gate<S: Simd>(s: S, x: S::F32) -> (S::F32, S::F32) {
    let one = s.splat(1.0);
    let z = s.mul(s.abs(x), s.splat(std::f32::consts::FRAC_1_SQRT_2));
    let t = s.div(one, s.mul_add(s.splat(0.327_591_1), z, one));
    let mut p = s.splat(1.061_405_4);
    for coefficient in [-1.453_152, 1.421_413_7, -0.284_496_74, 0.254_829_6] {
        p = s.mul_add(p, t, s.splat(coefficient));
    }
    let bell = s.exp(s.negate(s.mul(z, z)));
    let tail = s.mul(s.splat(0.5), s.mul(s.mul(p, t), bell));
    let half = s.splat(0.5);
    let gate = s.add(half, s.copy_sign(s.sub(half, tail), x));
    const DENSITY: f32 = 0.398_942_3;
    (gate, s.mul(s.splat(DENSITY), bell))
}
