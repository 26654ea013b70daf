//! Activations, number by number.

use burn_backend::TensorMetadata;
use burn_backend::cubecl::dtype_to_elem_type;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use crate::rows::{Parameter, address_type, cubes, empty, vector_size};

const UNITS: usize = 256;

/// A smooth step, times its argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Activation {
    /// By the tanh approximation.
    GeluTanh,
    /// By the error function.
    GeluErf,
    /// `x sigmoid(1.702 x)`
    QuickGelu,
    /// `x sigmoid(x)`
    Silu,
}

/// `activation(x + bias)`
///
/// # Shapes
/// - x and output: `[.., D]`
/// - bias: `[D]`
pub fn activate(x: CubeTensor, bias: Option<CubeTensor>, activation: Activation) -> CubeTensor {
    run(x, bias, None, Function::Value(activation))
}

/// The gradient of x, from that of `activation(x + bias)`.
///
/// # Shapes
/// - x, grad and output: `[.., D]`
/// - bias: `[D]`
pub fn activate_grad(
    x: CubeTensor,
    bias: Option<CubeTensor>,
    grad: CubeTensor,
    activation: Activation,
) -> CubeTensor {
    run(x, bias, Some(grad), Function::Slope(activation))
}

/// `activation(x) y`
///
/// # Shapes
/// - x, y and output: any, the same
pub fn activate_mul(x: CubeTensor, y: CubeTensor, activation: Activation) -> CubeTensor {
    run(x, None, Some(y), Function::Value(activation))
}

/// `x + bias`
///
/// # Shapes
/// - x and output: `[.., D]`
/// - bias: `[D]`
pub fn add_bias(x: CubeTensor, bias: CubeTensor) -> CubeTensor {
    run(x, Some(bias), None, Function::Identity)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Function {
    Identity,
    Value(Activation),
    Slope(Activation),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Steps {
    function: Function,
    has_bias: bool,
    has_factor: bool,
    /// Vectors of a row, each with its part of the bias.
    vectors: usize,
}

/// `function(x + bias) factor`
fn run(
    x: CubeTensor,
    bias: Option<CubeTensor>,
    factor: Option<CubeTensor>,
    function: Function,
) -> CubeTensor {
    let has_factor = factor.is_some();
    let x = into_contiguous(x);
    let factor = factor.map_or_else(|| x.clone(), into_contiguous);
    let bias = Parameter::of(bias, &x);
    let (client, shape) = (x.client.clone(), x.shape());
    let y = empty(&x, shape.clone(), x.dtype);
    let numbers = shape.num_elements();
    let types = [x.dtype, bias.tensor.dtype, factor.dtype];
    // Without a bias, rows do not matter.
    let width = if bias.given {
        shape[shape.num_dims() - 1]
    } else {
        numbers
    };
    let vector = vector_size(&client, &types, &[], &[width]);
    let steps = Steps {
        function,
        has_bias: bias.given,
        has_factor,
        vectors: if bias.given { width / vector } else { 1 },
    };
    activate_kernel::launch(
        &client,
        cubes(&client, (numbers / vector).div_ceil(UNITS)),
        CubeDim::new_1d(UNITS as u32),
        address_type(&[&x]),
        vector,
        x.into_buffer_arg(),
        bias.tensor.into_buffer_arg(),
        factor.into_buffer_arg(),
        y.clone().into_buffer_arg(),
        steps,
        types.map(dtype_to_elem_type),
    );
    y
}

/// Every unit has one vector of contiguous tensors.
#[cube(launch, address_type = "dynamic")]
fn activate_kernel<X: Float, B: Float, F: Float, N: Size>(
    x: &[Vector<X, N>],
    bias: &[Vector<B, N>],
    factor: &[Vector<F, N>],
    y: &mut [Vector<X, N>],
    #[comptime] steps: Steps,
    #[define(X, B, F)] _types: [ElemType; 3],
) {
    let at = ABSOLUTE_POS;
    if at >= y.len() {
        terminate!();
    }
    let mut value = Vector::<f32, N>::cast_from(x[at]);
    if comptime!(steps.has_bias) {
        value += Vector::cast_from(bias[at % steps.vectors]);
    }
    match comptime!(steps.function) {
        Function::Identity => {}
        Function::Value(activation) => value = value_of::<N>(value, activation),
        Function::Slope(activation) => value = slope_of::<N>(value, activation),
    }
    if comptime!(steps.has_factor) {
        value *= Vector::cast_from(factor[at]);
    }
    y[at] = Vector::cast_from(value);
}

/// sqrt(2 / pi)
const GELU_TANH_SCALE: f32 = 0.797_884_6;
const GELU_TANH_CUBE: f32 = 0.044_715;
/// sqrt(1 / 2)
const HALF_ROOT: f32 = std::f32::consts::FRAC_1_SQRT_2;
/// 1 / sqrt(2 pi)
const GAUSS: f32 = 0.398_942_3;
const QUICK: f32 = 1.702;

#[cube]
fn sigmoid<N: Size>(x: Vector<f32, N>) -> Vector<f32, N> {
    let one = Vector::<f32, N>::new(1.0f32);
    one / (one + (Vector::new(0.0f32) - x).exp())
}

#[cube]
pub(crate) fn value_of<N: Size>(
    x: Vector<f32, N>,
    #[comptime] activation: Activation,
) -> Vector<f32, N> {
    let (one, half) = (Vector::<f32, N>::new(1.0f32), Vector::<f32, N>::new(0.5f32));
    match activation {
        Activation::GeluTanh => {
            let cube = Vector::new(GELU_TANH_CUBE) * x * x * x;
            half * x * (one + ((x + cube) * Vector::new(GELU_TANH_SCALE)).tanh())
        }
        Activation::GeluErf => half * x * (one + (x * Vector::new(HALF_ROOT)).erf()),
        Activation::QuickGelu => x * sigmoid::<N>(x * Vector::new(QUICK)),
        Activation::Silu => x * sigmoid::<N>(x),
    }
}

#[cube]
fn slope_of<N: Size>(x: Vector<f32, N>, #[comptime] activation: Activation) -> Vector<f32, N> {
    let (one, half) = (Vector::<f32, N>::new(1.0f32), Vector::<f32, N>::new(0.5f32));
    match activation {
        Activation::GeluTanh => {
            let square = x * x;
            let inner = x * (one + Vector::new(GELU_TANH_CUBE) * square);
            let tanh = (inner * Vector::new(GELU_TANH_SCALE)).tanh();
            let steep = Vector::new(GELU_TANH_SCALE)
                * (one + Vector::new(3.0f32 * GELU_TANH_CUBE) * square);
            half * (one + tanh) + half * x * (one - tanh * tanh) * steep
        }
        Activation::GeluErf => {
            let below = half * (one + (x * Vector::new(HALF_ROOT)).erf());
            below + x * Vector::new(GAUSS) * (x * x * Vector::new(-0.5f32)).exp()
        }
        Activation::QuickGelu => {
            let step = sigmoid::<N>(x * Vector::new(QUICK));
            step + x * Vector::new(QUICK) * step * (one - step)
        }
        Activation::Silu => {
            let step = sigmoid::<N>(x);
            step * (one + x * (one - step))
        }
    }
}
