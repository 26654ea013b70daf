//! The building blocks of the models.
//!
//! Every op gives the same result on every device and is differentiable on autodiff devices.
//! Weights keep PyTorch's layout: a linear weight is `[out_features, in_features]`.

mod mask;
mod plain;

use burn::prelude::*;

pub use mask::AttentionMask;
use mask::Lengths;

/// `x weight^T + bias`, with the weight as checkpoints store it.
///
/// # Shapes
/// - x: `[..., in_features]`
/// - weight: `[out_features, in_features]`, bias: `[out_features]`
/// - output: `[..., out_features]`
pub fn linear<const D: usize>(
    x: Tensor<D>,
    weight: Tensor<2>,
    bias: Option<Tensor<1>>,
) -> Tensor<D> {
    let in_features = x.dims()[D - 1];
    assert_eq!(
        weight.dims()[1],
        in_features,
        "weight is [out_features, in_features]"
    );
    plain::linear(x, weight, bias)
}

/// Scaled dot-product attention, `softmax(scale q k^T + mask) v`, heads joined again.
///
/// With fewer key heads than query heads, `Hq / Hkv` neighbouring query heads share a key head.
///
/// # Shapes
/// - q: `[B, Hq, S, hd]`, k and v: `[B, Hkv, Sk, hd]`
/// - output: `[B, S, Hq * hd]`
pub fn attention(
    q: Tensor<4>,
    k: Tensor<4>,
    v: Tensor<4>,
    mask: &AttentionMask,
    scale: f32,
) -> Tensor<3> {
    check_attention(&q, &k, &v, mask);
    plain::attention(q, k, v, None, mask, scale)
}

/// [`attention`] with `bias` added to the scaled scores, as T5's relative positions are.
///
/// # Shapes
/// - q: `[B, Hq, S, hd]`, k and v: `[B, Hkv, Sk, hd]`
/// - bias: `[B or 1, Hq, S, Sk]`
/// - output: `[B, S, Hq * hd]`
pub fn attention_with_bias(
    q: Tensor<4>,
    k: Tensor<4>,
    v: Tensor<4>,
    bias: Tensor<4>,
    mask: &AttentionMask,
    scale: f32,
) -> Tensor<3> {
    check_attention(&q, &k, &v, mask);
    plain::attention(q, k, v, Some(bias), mask, scale)
}

fn check_attention(q: &Tensor<4>, k: &Tensor<4>, v: &Tensor<4>, mask: &AttentionMask) {
    let [batch, heads, queries, head_dim] = q.dims();
    let [_, kv_heads, keys, _] = k.dims();
    assert_eq!(
        heads % kv_heads,
        0,
        "query heads are a multiple of key heads"
    );
    assert_eq!(
        k.dims(),
        [batch, kv_heads, keys, head_dim],
        "keys fit the queries"
    );
    assert_eq!(v.dims(), k.dims(), "values fit the keys");
    mask.check(Lengths {
        batch,
        queries,
        keys,
    });
}

/// `[B, S, heads * hd]` to `[B, heads, S, hd]`.
pub fn split_heads(x: Tensor<3>, heads: usize) -> Tensor<4> {
    plain::split_heads(x, heads)
}

/// Layer normalisation over the last dimension, with the affine part that is given.
///
/// # Shapes
/// - x and output: `[..., D]`
/// - weight, bias: `[D]`
pub fn layer_norm<const D: usize>(
    x: Tensor<D>,
    weight: Option<Tensor<1>>,
    bias: Option<Tensor<1>>,
    eps: f64,
) -> Tensor<D> {
    plain::layer_norm(x, weight, bias, eps)
}

/// Root-mean-square normalisation over the last dimension: `x / sqrt(mean(x^2) + eps) * weight`.
///
/// # Shapes
/// - x and output: `[..., D]`
/// - weight: `[D]`
pub fn rms_norm<const D: usize>(x: Tensor<D>, weight: Tensor<1>, eps: f64) -> Tensor<D> {
    plain::rms_norm(x, weight, eps)
}

/// Adaptive layer normalisation: `layer_norm(x) * (1 + scale) + shift`.
///
/// # Shapes
/// - x and output: `[B, S, D]`
/// - shift, scale: `[B, 1, D]`
pub fn layer_norm_modulate(
    x: Tensor<3>,
    shift: Tensor<3>,
    scale: Tensor<3>,
    eps: f64,
) -> Tensor<3> {
    plain::layer_norm_modulate(x, shift, scale, eps)
}

/// RMS normalisation of every head, then the rotary embedding over neighbouring pairs `(2i, 2i + 1)`, as FLUX has it.
///
/// # Shapes
/// - x: `[B, S, heads * hd]`, weight: `[hd]`
/// - cos, sin: `[S, hd / 2]`
/// - output: `[B, heads, S, hd]`
pub fn rms_norm_rope(
    x: Tensor<3>,
    weight: Tensor<1>,
    cos: Tensor<2>,
    sin: Tensor<2>,
    heads: usize,
    eps: f64,
) -> Tensor<4> {
    plain::rms_norm_rope(x, weight, cos, sin, heads, eps)
}

/// The rotary embedding over pairs half a head apart, as Qwen has it: `x cos + rotate_half(x) sin`.
///
/// # Shapes
/// - x and output: `[B, H, S, hd]`
/// - cos, sin: `[B or 1, S, hd]`
pub fn rope_half(x: Tensor<4>, cos: Tensor<3>, sin: Tensor<3>) -> Tensor<4> {
    plain::rope_half(x, cos, sin)
}

/// Gated residual: `x + y * gate`.
///
/// # Shapes
/// - x, y and output: `[B, S, D]`
/// - gate: `[B, 1, D]`
pub fn gate_add(x: Tensor<3>, y: Tensor<3>, gate: Tensor<3>) -> Tensor<3> {
    plain::gate_add(x, y, gate)
}

/// GELU in its tanh approximation.
pub fn gelu_tanh<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    plain::gelu_tanh(x)
}

/// GELU with the error function.
pub fn gelu_erf<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    plain::gelu_erf(x)
}

/// `x * sigmoid(1.702 x)`, CLIP's GELU.
pub fn quick_gelu<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    plain::quick_gelu(x)
}

/// `x * sigmoid(x)`.
pub fn silu<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    plain::silu(x)
}

/// `silu(gate) * up`, both of one shape.
pub fn silu_mul<const D: usize>(gate: Tensor<D>, up: Tensor<D>) -> Tensor<D> {
    plain::silu(gate) * up
}

/// `gelu_tanh(gate) * up`, both of one shape.
pub fn gelu_tanh_mul<const D: usize>(gate: Tensor<D>, up: Tensor<D>) -> Tensor<D> {
    plain::gelu_tanh(gate) * up
}

/// Two-dimensional convolution with zero padding.
///
/// # Shapes
/// - x: `[B, C, H, W]`, weight: `[O, C, kh, kw]`, bias: `[O]`
/// - padding: top, left, bottom, right
/// - output: `[B, O, (H + top + bottom - kh) / stride + 1, (W + left + right - kw) / stride + 1]`
pub fn conv2d(
    x: Tensor<4>,
    weight: Tensor<4>,
    bias: Option<Tensor<1>>,
    stride: usize,
    padding: [usize; 4],
) -> Tensor<4> {
    plain::conv2d(x, weight, bias, stride, padding)
}

/// Normalises each of `groups` groups of channels over channels and space.
///
/// # Shapes
/// - x and output: `[B, C, ...]`
/// - weight, bias: `[C]`
pub fn group_norm<const D: usize>(
    x: Tensor<D>,
    weight: Tensor<1>,
    bias: Tensor<1>,
    groups: usize,
    eps: f64,
) -> Tensor<D> {
    plain::group_norm(x, weight, bias, groups, eps)
}

/// `silu(group_norm(x))`.
///
/// # Shapes
/// As [`group_norm`].
pub fn group_norm_silu<const D: usize>(
    x: Tensor<D>,
    weight: Tensor<1>,
    bias: Tensor<1>,
    groups: usize,
    eps: f64,
) -> Tensor<D> {
    plain::silu(plain::group_norm(x, weight, bias, groups, eps))
}
