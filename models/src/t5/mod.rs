//! The encoder of T5 v1.1, as transformers' `T5EncoderModel` names it.

mod attention;
mod block;
mod config;
mod encoder;
#[cfg(test)]
mod tests;
mod work;

pub use config::T5Config;
pub use encoder::T5Encoder;
