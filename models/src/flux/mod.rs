//! The FLUX transformer, as diffusers' `FluxTransformer2DModel` names it.
//!
//! Text and image tokens run through double-stream blocks, which keep separate weights per
//! stream and attend jointly, then through single-stream blocks on their concatenation. What
//! depends on the condition alone is computed once ([`FluxContext`]) and shared by all steps.

mod attention;
mod config;
mod context;
mod embeddings;
mod rotary;
mod single_transformer_block;
#[cfg(test)]
mod tests;
mod transformer;
mod transformer_block;
mod work;

pub use config::FluxTransformerConfig;
pub use context::{FluxCondition, FluxContext};
pub use rotary::Rotary;
pub use transformer::{FluxInput, FluxTransformer};
