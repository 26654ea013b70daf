//! Normalization of groups of channels over channels and space.

use burn_backend::TensorMetadata;
use burn_backend::cubecl::dtype_to_elem_type;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use crate::activation::{Activation, value_of};
use crate::cube::cube_sum;
use crate::rows::{address_type, cubes, empty, units, vector_size};

const UNITS_MAX: usize = 1024;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Steps {
    silu: bool,
    units: usize,
}

/// `normal(x) weight + bias`, each group of neighbouring channels made normal by itself, and its SiLU if asked for.
///
/// # Shapes
/// - x and output: `[B, C, ..]`
/// - weight, bias: `[C]`
pub fn group_norm(
    x: CubeTensor,
    weight: CubeTensor,
    bias: CubeTensor,
    groups: usize,
    eps: f32,
    silu: bool,
) -> CubeTensor {
    let (shape, client) = (x.shape(), x.client.clone());
    let (x, weight, bias) = (
        into_contiguous(x),
        into_contiguous(weight),
        into_contiguous(bias),
    );
    let [batch, channels] = [shape[0], shape[1]];
    let pixels = shape.num_elements() / (batch * channels);
    let y = empty(&x, shape, x.dtype);
    let vector = vector_size(&client, &[x.dtype], &[], &[pixels]);
    let vectors = channels / groups * pixels / vector;
    let steps = Steps {
        silu,
        units: units(&client, vectors, UNITS_MAX),
    };
    group_norm_kernel::launch(
        &client,
        cubes(&client, batch * groups),
        CubeDim::new_1d(steps.units as u32),
        address_type(&[&x]),
        vector,
        x.clone().into_buffer_arg(),
        weight.clone().into_buffer_arg(),
        bias.into_buffer_arg(),
        y.clone().into_buffer_arg(),
        batch * groups,
        groups,
        channels / groups,
        pixels / vector,
        eps,
        steps,
        [x.dtype, weight.dtype].map(dtype_to_elem_type),
    );
    y
}

#[cube(launch, address_type = "dynamic")]
fn group_norm_kernel<X: Float, P: Float, N: Size>(
    x: &[Vector<X, N>],
    weight: &[P],
    bias: &[P],
    y: &mut [Vector<X, N>],
    all: usize,
    groups: usize,
    channels: usize,
    pixels: usize,
    eps: f32,
    #[comptime] steps: Steps,
    #[define(X, P)] _types: [ElemType; 2],
) {
    let index = CUBE_POS;
    if index >= all {
        terminate!();
    }
    let vectors = channels * pixels;
    let first = index * vectors;
    let unit = UNIT_POS as usize;
    let turns = vectors.div_ceil(steps.units);
    let width = f32::cast_from(vectors * N::value());
    let mut sum = Vector::<f32, N>::new(0.0f32);
    for turn in 0..turns {
        let at = turn * steps.units + unit;
        if at < vectors {
            sum += Vector::cast_from(x[first + at]);
        }
    }
    let mean = cube_sum(Vector::vector_sum(sum), steps.units) / width;
    let mut squares = Vector::<f32, N>::new(0.0f32);
    for turn in 0..turns {
        let at = turn * steps.units + unit;
        if at < vectors {
            let centered = Vector::<f32, N>::cast_from(x[first + at]) - Vector::new(mean);
            squares += centered * centered;
        }
    }
    let normal = (cube_sum(Vector::vector_sum(squares), steps.units) / width + eps).inverse_sqrt();
    let first_channel = index % groups * channels;
    for turn in 0..turns {
        let at = turn * steps.units + unit;
        if at < vectors {
            let channel = first_channel + at / pixels;
            let scale = f32::cast_from(weight[channel]) * normal;
            let centered = Vector::<f32, N>::cast_from(x[first + at]) - Vector::new(mean);
            let mut result =
                centered * Vector::new(scale) + Vector::new(f32::cast_from(bias[channel]));
            if comptime!(steps.silu) {
                result = value_of::<N>(result, Activation::Silu);
            }
            y[first + at] = Vector::cast_from(result);
        }
    }
}
