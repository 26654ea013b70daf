//! Qwen-Image's autoencoder on still images, as diffusers' `AutoencoderKLQwenImage` names it.
//!
//! The reference is a causal video model: each convolution sees the frames before, which are zeros before the first,
//! and it halves time by layers that pass the first frame by. So on one frame a three-dimensional kernel is its
//! last temporal slice, and `time_conv` is never used. The tensors keep their names and shapes all the same.

mod attention;
mod autoencoder;
mod causal_conv;
mod config;
mod decoder;
mod encoder;
mod mid_block;
mod norm;
mod resample;
mod resnet;
#[cfg(test)]
mod tests;
mod work;

pub use autoencoder::AutoencoderKlQwenImage;
pub use config::AutoencoderKlQwenImageConfig;
