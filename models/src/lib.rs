//! Burn models under their reference names.
//!
//! In reading order: how weights come in and what new ones start from, the ops and layers that
//! everything is made of, the components, and the edit pipeline.

pub mod device;
pub mod hub;
pub mod images;
pub mod init;
pub mod memory;
pub mod noise;
pub mod weights;

pub mod layers;
pub mod lora;
pub mod ops;

pub mod dit;
mod work;

pub mod autoencoder_kl;
pub mod autoencoder_kl_qwen_image;
pub mod clip;
pub mod flux;
pub mod image_processor;
pub mod judge;
pub mod qwen2_5_vl;
pub mod qwen_image;
pub mod t5;
pub mod tokenizer;

pub mod editor;
pub mod exchange;
pub mod inspect;
pub mod scheduler;
pub mod solver;

#[cfg(test)]
mod golden;
#[cfg(test)]
mod hostile;
