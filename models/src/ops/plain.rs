//! Every op in burn's own ops: what runs on devices without fused kernels, and what the fused kernels are tested against.

use burn::prelude::*;
use burn::tensor::{
    DType, TensorData, activation, module,
    ops::{AttentionModuleOptions, ConvOptions},
};

use super::mask::{AttentionMask, Lengths};

/// Stands for minus infinity where a whole row may be masked: infinities would make it NaN.
const MASKED_SCORE: f32 = -1e30;

pub(crate) fn linear<const D: usize>(
    x: Tensor<D>,
    weight: Tensor<2>,
    bias: Option<Tensor<1>>,
) -> Tensor<D> {
    let mut dims = x.dims();
    let [out_features, in_features] = weight.dims();
    let rows = x.shape().num_elements() / in_features;
    let y = x.reshape([rows, in_features]).matmul(weight.transpose());
    let y = match bias {
        Some(bias) => y + bias.unsqueeze(),
        None => y,
    };
    dims[D - 1] = out_features;
    y.reshape(dims)
}

pub(crate) fn lora_linear<const D: usize>(
    x: Tensor<D>,
    weight: Tensor<2>,
    bias: Option<Tensor<1>>,
    a: Tensor<2>,
    b: Tensor<2>,
    scale: f64,
) -> Tensor<D> {
    let (a, b) = (a.cast(x.dtype()), b.cast(x.dtype()));
    let update = linear(linear(x.clone(), a, None), b, None);
    linear(x, weight, bias) + update * scale
}

pub(crate) fn attention(
    q: Tensor<4>,
    k: Tensor<4>,
    v: Tensor<4>,
    bias: Option<Tensor<4>>,
    mask: &AttentionMask,
    scale: f32,
) -> Tensor<3> {
    let [batch, heads, queries, head_dim] = q.dims();
    let [_, kv_heads, keys, _] = k.dims();
    let dtype = q.dtype();
    let (k, v) = (
        repeat_heads(k, heads / kv_heads),
        repeat_heads(v, heads / kv_heads),
    );
    let scores = (q * scale).matmul(k.transpose()).cast(DType::F32);
    let scores = match bias {
        Some(bias) => scores + bias.cast(DType::F32),
        None => scores,
    };
    let lengths = Lengths {
        batch,
        queries,
        keys,
    };
    let probabilities = masked_softmax(scores, mask, lengths).cast(dtype);
    probabilities
        .matmul(v)
        .swap_dims(1, 2)
        .reshape([batch, queries, heads * head_dim])
}

/// Unmasked [`attention`] by the backend's own op, whose kernel keeps no scores where it has one.
pub(crate) fn backend_attention(q: Tensor<4>, k: Tensor<4>, v: Tensor<4>, scale: f32) -> Tensor<3> {
    let [batch, heads, queries, head_dim] = q.dims();
    let times = heads / k.dims()[1];
    let options = AttentionModuleOptions {
        scale: Some(f64::from(scale)),
        ..Default::default()
    };
    let (k, v) = (repeat_heads(k, times), repeat_heads(v, times));
    module::attention(q, k, v, None, None, options)
        .swap_dims(1, 2)
        .reshape([batch, queries, heads * head_dim])
}

fn repeat_heads(x: Tensor<4>, times: usize) -> Tensor<4> {
    if times == 1 {
        return x;
    }
    let [batch, heads, length, head_dim] = x.dims();
    x.unsqueeze_dim::<5>(2)
        .expand([batch, heads, times, length, head_dim])
        .reshape([batch, heads * times, length, head_dim])
}

fn masked_softmax(scores: Tensor<4>, mask: &AttentionMask, lengths: Lengths) -> Tensor<4> {
    if *mask == AttentionMask::None {
        return activation::softmax(scores, 3);
    }
    let hidden = hidden_keys(mask, lengths, &scores.device()).expand(scores.shape());
    let scores = scores.mask_fill(hidden.clone(), MASKED_SCORE);
    activation::softmax(scores, 3).mask_fill(hidden, 0.0)
}

/// `true` where a query must not look: [B, 1, S, Sk].
fn hidden_keys(mask: &AttentionMask, lengths: Lengths, device: &Device) -> Tensor<4, Bool> {
    let Lengths {
        batch,
        queries,
        keys,
    } = lengths;
    let mut hidden = vec![true; batch * queries * keys];
    for row in 0..batch * queries {
        let seen = mask.keys_of(row / queries, row % queries, lengths);
        if !seen.is_empty() {
            hidden[row * keys..][seen].fill(false);
        }
    }
    Tensor::from_data(TensorData::new(hidden, [batch, 1, queries, keys]), device)
}

pub(crate) fn layer_norm<const D: usize>(
    x: Tensor<D>,
    weight: Option<Tensor<1>>,
    bias: Option<Tensor<1>>,
    eps: f64,
) -> Tensor<D> {
    affine(normalize(x, eps), weight, bias)
}

/// Statistics of narrow types are taken in f32, as the references do.
fn wide<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    match x.dtype() {
        DType::BF16 | DType::F16 => x.cast(DType::F32),
        _ => x,
    }
}

fn normalize<const D: usize>(x: Tensor<D>, eps: f64) -> Tensor<D> {
    let dtype = x.dtype();
    let x = wide(x);
    let centered = x.clone() - x.mean_dim(D - 1);
    let variance = (centered.clone() * centered.clone()).mean_dim(D - 1);
    (centered / (variance + eps).sqrt()).cast(dtype)
}

fn affine<const D: usize>(
    x: Tensor<D>,
    weight: Option<Tensor<1>>,
    bias: Option<Tensor<1>>,
) -> Tensor<D> {
    let x = match weight {
        Some(weight) => x * weight.unsqueeze(),
        None => x,
    };
    match bias {
        Some(bias) => x + bias.unsqueeze(),
        None => x,
    }
}

pub(crate) fn rms_norm<const D: usize>(x: Tensor<D>, weight: Tensor<1>, eps: f64) -> Tensor<D> {
    let dtype = x.dtype();
    let x = wide(x);
    let mean_square = (x.clone() * x.clone()).mean_dim(D - 1);
    (x / (mean_square + eps).sqrt() * wide(weight).unsqueeze()).cast(dtype)
}

pub(crate) fn layer_norm_modulate(
    x: Tensor<3>,
    shift: Tensor<3>,
    scale: Tensor<3>,
    eps: f64,
) -> Tensor<3> {
    normalize(x, eps) * (scale + 1.0) + shift
}

pub(crate) fn gate_add(x: Tensor<3>, y: Tensor<3>, gate: Tensor<3>) -> Tensor<3> {
    x + y * gate
}

pub(crate) fn split_heads(x: Tensor<3>, heads: usize) -> Tensor<4> {
    let [batch, length, features] = x.dims();
    x.reshape([batch, length, heads, features / heads])
        .swap_dims(1, 2)
}

pub(crate) fn rms_norm_rope(
    x: Tensor<3>,
    weight: Tensor<1>,
    cos: Tensor<2>,
    sin: Tensor<2>,
    heads: usize,
    eps: f64,
) -> Tensor<4> {
    let dtype = x.dtype();
    let x = rms_norm(wide(split_heads(x, heads)), wide(weight), eps);
    let [batch, _, length, head_dim] = x.dims();
    let half = head_dim / 2;
    let table = |t: Tensor<2>| t.reshape([1, 1, length, half, 1]);
    let (cos, sin) = (table(wide(cos)), table(wide(sin)));
    let pairs = x.reshape([batch, heads, length, half, 2]);
    let (even, odd) = (pairs.clone().narrow(4, 0, 1), pairs.narrow(4, 1, 1));
    let rotated_even = even.clone() * cos.clone() - odd.clone() * sin.clone();
    let rotated_odd = even * sin + odd * cos;
    let rotated = Tensor::cat(vec![rotated_even, rotated_odd], 4);
    rotated
        .reshape([batch, heads, length, head_dim])
        .cast(dtype)
}

pub(crate) fn rope_half(x: Tensor<4>, cos: Tensor<3>, sin: Tensor<3>) -> Tensor<4> {
    let (half, dtype) = (x.dims()[3] / 2, x.dtype());
    let x = wide(x);
    let (first, second) = (
        x.clone().narrow(3, 0, half),
        x.clone().narrow(3, half, half),
    );
    let rotated = Tensor::cat(vec![second.neg(), first], 3);
    let table = |t: Tensor<3>| wide(t).unsqueeze_dim::<4>(1);
    (x * table(cos) + rotated * table(sin)).cast(dtype)
}

pub(crate) fn gelu_tanh<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    let cube = x.clone() * x.clone() * x.clone();
    let inner = (x.clone() + cube * 0.044715) * (2.0 / std::f64::consts::PI).sqrt();
    x * (inner.tanh() + 1.0) * 0.5
}

pub(crate) fn gelu_erf<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    let inner = x.clone() * std::f64::consts::FRAC_1_SQRT_2;
    x * (inner.erf() + 1.0) * 0.5
}

pub(crate) fn quick_gelu<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    x.clone() * activation::sigmoid(x * 1.702)
}

pub(crate) fn silu<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    x.clone() * activation::sigmoid(x)
}

pub(crate) fn conv2d(
    x: Tensor<4>,
    weight: Tensor<4>,
    bias: Option<Tensor<1>>,
    stride: usize,
    padding: [usize; 4],
) -> Tensor<4> {
    let [top, left, bottom, right] = padding;
    let options =
        ConvOptions::new_with_padding([stride, stride], [(top, bottom), (left, right)], [1, 1], 1);
    module::conv2d(x, weight, bias, options)
}

pub(crate) fn group_norm<const D: usize>(
    x: Tensor<D>,
    weight: Tensor<1>,
    bias: Tensor<1>,
    groups: usize,
    eps: f64,
) -> Tensor<D> {
    let shape = x.shape();
    let [batch, channels] = [shape[0], shape[1]];
    let members = shape.num_elements() / (batch * groups);
    let normal = normalize(x.reshape([batch, groups, members]), eps);
    let per_channel = normal.reshape([batch, channels, members * groups / channels]);
    let column = |t: Tensor<1>| t.reshape([1, channels, 1]);
    (per_channel * column(weight) + column(bias)).reshape(shape)
}
