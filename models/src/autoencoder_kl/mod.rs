//! The image autoencoder, as diffusers' `AutoencoderKL` names it.

mod attention;
mod autoencoder;
mod config;
mod decoder;
mod encoder;
mod mid_block;
mod resnet;
#[cfg(test)]
mod tests;
mod work;

pub use autoencoder::AutoencoderKl;
pub use config::AutoencoderKlConfig;
