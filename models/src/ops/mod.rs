//! The building blocks of the models.
//!
//! Every op gives the same result on every device and is differentiable on autodiff devices.
//! Weights keep PyTorch's layout: a linear weight is `[out_features, in_features]`.

mod activation;
mod attention;
mod attention_blocks;
mod attention_kernels;
mod conv;
mod conv_direct;
mod conv_unfold;
#[cfg(feature = "cube")]
mod cube;
mod fused;
mod gate;
mod group_norm;
mod heads;
mod linear;
mod linear_output;
mod mask;
mod norm;
mod norm_kernels;
mod path;
mod plain;
mod product;
mod rope;
mod scratch;
mod simd;
mod surrogate;
#[cfg(test)]
mod tests;
mod values;

use burn::prelude::*;

pub use activation::{gelu_erf, gelu_tanh, gelu_tanh_mul, quick_gelu, silu, silu_mul};
pub use attention::{attention, attention_with_bias};
pub(crate) use attention_blocks::Scores;
pub use conv::conv2d;
pub use gate::gate_add;
pub use group_norm::{group_norm, group_norm_silu};
pub use linear::{linear, lora_linear};
pub use linear_output::{LinearOutput, linear_output};
pub use mask::AttentionMask;
pub use norm::{layer_norm, layer_norm_modulate, rms_norm};
pub use path::path_name;
pub use rope::{rms_norm_rope, rope_half};
pub(crate) use surrogate::surrogate;

/// `[B, S, heads * hd]` to `[B, heads, S, hd]`.
pub fn split_heads(x: Tensor<3>, heads: usize) -> Tensor<4> {
    plain::split_heads(x, heads)
}
