//! Activations, number by number.

use burn_backend::TensorMetadata;
use burn_backend::cubecl::dtype_to_elem_type;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use crate::rows::{address_type, cubes, empty, vector_size};

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

/// # Shapes
/// - x and output: any
pub fn activate(x: CubeTensor, activation: Activation) -> CubeTensor {
    let x = into_contiguous(x);
    let y = empty(&x, x.shape(), x.dtype);
    let work = Work::of(&x, &[&x]);
    activate_kernel::launch(
        &x.client.clone(),
        work.cubes,
        work.cube_dim,
        address_type(&[&x]),
        work.vector,
        x.clone().into_buffer_arg(),
        y.clone().into_buffer_arg(),
        activation,
        dtype_to_elem_type(x.dtype),
    );
    y
}

#[cube(launch, address_type = "dynamic")]
fn activate_kernel<X: Float, N: Size>(
    x: &[Vector<X, N>],
    y: &mut [Vector<X, N>],
    #[comptime] activation: Activation,
    #[define(X)] _type: ElemType,
) {
    let at = ABSOLUTE_POS;
    if at >= y.len() {
        terminate!();
    }
    y[at] = Vector::cast_from(value::<N>(Vector::cast_from(x[at]), activation));
}

/// `activation(x) y`
///
/// # Shapes
/// - x, y and output: any, the same
pub fn activate_mul(x: CubeTensor, y: CubeTensor, activation: Activation) -> CubeTensor {
    let (x, y) = (into_contiguous(x), into_contiguous(y));
    let product = empty(&x, x.shape(), x.dtype);
    let work = Work::of(&x, &[&x, &y]);
    activate_mul_kernel::launch(
        &x.client.clone(),
        work.cubes,
        work.cube_dim,
        address_type(&[&x]),
        work.vector,
        x.clone().into_buffer_arg(),
        y.clone().into_buffer_arg(),
        product.clone().into_buffer_arg(),
        activation,
        [x.dtype, y.dtype].map(dtype_to_elem_type),
    );
    product
}

#[cube(launch, address_type = "dynamic")]
fn activate_mul_kernel<X: Float, Y: Float, N: Size>(
    x: &[Vector<X, N>],
    y: &[Vector<Y, N>],
    product: &mut [Vector<X, N>],
    #[comptime] activation: Activation,
    #[define(X, Y)] _types: [ElemType; 2],
) {
    let at = ABSOLUTE_POS;
    if at >= product.len() {
        terminate!();
    }
    let active = value::<N>(Vector::cast_from(x[at]), activation);
    product[at] = Vector::cast_from(active * Vector::cast_from(y[at]));
}

/// The gradient of x, from that of `activation(x)`.
///
/// # Shapes
/// - x, grad and output: any, the same
pub fn activate_grad(x: CubeTensor, grad: CubeTensor, activation: Activation) -> CubeTensor {
    let (x, grad) = (into_contiguous(x), into_contiguous(grad));
    let dx = empty(&x, x.shape(), x.dtype);
    let work = Work::of(&x, &[&x, &grad]);
    activate_grad_kernel::launch(
        &x.client.clone(),
        work.cubes,
        work.cube_dim,
        address_type(&[&x]),
        work.vector,
        x.clone().into_buffer_arg(),
        grad.clone().into_buffer_arg(),
        dx.clone().into_buffer_arg(),
        activation,
        [x.dtype, grad.dtype].map(dtype_to_elem_type),
    );
    dx
}

#[cube(launch, address_type = "dynamic")]
fn activate_grad_kernel<X: Float, G: Float, N: Size>(
    x: &[Vector<X, N>],
    grad: &[Vector<G, N>],
    dx: &mut [Vector<X, N>],
    #[comptime] activation: Activation,
    #[define(X, G)] _types: [ElemType; 2],
) {
    let at = ABSOLUTE_POS;
    if at >= dx.len() {
        terminate!();
    }
    let slope = slope::<N>(Vector::cast_from(x[at]), activation);
    dx[at] = Vector::cast_from(slope * Vector::cast_from(grad[at]));
}

/// Every unit has one vector of contiguous tensors.
struct Work {
    cubes: CubeCount,
    cube_dim: CubeDim,
    vector: usize,
}

impl Work {
    fn of(like: &CubeTensor, tensors: &[&CubeTensor]) -> Self {
        let numbers = like.shape().num_elements();
        let types: Vec<_> = tensors.iter().map(|tensor| tensor.dtype).collect();
        let vector = vector_size(&like.client, &types, &[], &[numbers]);
        Self {
            cubes: cubes(&like.client, (numbers / vector).div_ceil(UNITS)),
            cube_dim: CubeDim::new_1d(UNITS as u32),
            vector,
        }
    }
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
pub(crate) fn value<N: Size>(
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
fn slope<N: Size>(x: Vector<f32, N>, #[comptime] activation: Activation) -> Vector<f32, N> {
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
