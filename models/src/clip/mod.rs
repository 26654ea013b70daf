//! CLIP's text encoder, as transformers' `CLIPTextModel` names it.

mod config;
mod encoder_layer;
#[cfg(test)]
mod tests;
mod text_model;
mod work;

pub use config::{ClipTextConfig, HiddenAct};
pub use text_model::{ClipOutput, ClipText};
