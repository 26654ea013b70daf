//! The Qwen-Image transformer, as diffusers' `QwenImageTransformer2DModel` names it.
//!
//! Text and image tokens run through double-stream blocks alone. Images are told apart by their first position
//! axis and are centred on the other two; text follows on the diagonal beyond the largest of them. What depends on
//! the condition alone is computed once ([`QwenImageContext`]) and shared by all steps.

mod config;
mod context;
mod embeddings;
mod rotary;
#[cfg(test)]
mod tests;
mod transformer;
mod transformer_block;
mod work;

pub use config::QwenImageTransformerConfig;
pub use context::{ImageShape, QwenImageCondition, QwenImageContext};
pub use transformer::{QwenImageInput, QwenImageTransformer};
