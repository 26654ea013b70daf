//! The building blocks of the models.
//!
//! Every op gives the same result on every device and is differentiable on autodiff devices.
//! Weights keep PyTorch's layout: a linear weight is `[out_features, in_features]`.

mod activation;
mod attention;
mod attention_kernels;
mod fused;
mod gate;
mod heads;
mod linear;
mod mask;
mod norm;
mod norm_kernels;
mod plain;
mod product;
mod rope;
mod scratch;
mod simd;
#[cfg(test)]
mod tests;
mod values;

use burn::prelude::*;

pub use activation::{gelu_erf, gelu_tanh, gelu_tanh_mul, quick_gelu, silu, silu_mul};
pub use attention::{attention, attention_with_bias};
pub use gate::gate_add;
pub use linear::{linear, lora_linear};
pub use mask::AttentionMask;
pub use norm::{layer_norm, layer_norm_modulate, rms_norm};
pub use rope::{rms_norm_rope, rope_half};

/// `[B, S, heads * hd]` to `[B, heads, S, hd]`.
pub fn split_heads(x: Tensor<3>, heads: usize) -> Tensor<4> {
    plain::split_heads(x, heads)
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
