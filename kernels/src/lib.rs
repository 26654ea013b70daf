//! Kernels in CubeCL: what burn's own do not do in few passes over memory.
//!
//! Each function takes and gives tensors of burn's CubeCL backend, whatever runtime they are on. Values are read and written
//! in the type that they are stored in; everything between is f32. What the functions compute is what the ops of
//! the same names in `retouch-models` document; backward passes are named after the gradient that they give.
//!
//! Kernels are compiled where they first run, for the sizes that are marked `#[comptime]`.

#![cfg(feature = "cube")]
// A kernel knows nothing but its arguments: sizes, strides and all.
#![allow(clippy::too_many_arguments)]

mod activation;
mod attention;
mod cube;
#[cfg(all(test, any(feature = "wgpu", feature = "cuda")))]
mod device_tests;
mod gate;
mod group_norm;
mod heads;
mod linear;
mod lora;
mod norm;
mod product;
mod rope;
mod rows;

pub use burn_cubecl::CubeBackend;
pub use burn_cubecl::fusion::CubeFusionHandle;
pub use burn_cubecl::tensor::CubeTensor;

pub use activation::{Activation, activate, activate_grad, activate_mul, add_bias};
pub use attention::{AttentionGrads, Keys, attention, attention_backward};
pub use gate::{gate_add, gate_input_grad};
pub use group_norm::group_norm;
pub use heads::{Rotation, heads, heads_grad};
pub use linear::{FEW_ROWS, linear, linear_grad};
pub use lora::{lora_add, lora_grads, lora_linear};
pub use norm::{Normalization, normalize, normalize_grad};
pub use product::product;
pub use rope::rope_half;
