use super::ImageSize;
use crate::tokenizer::TokenizeError;

/// Why an image can't be encoded or decoded.
#[derive(Debug, thiserror::Error)]
pub enum EditError {
    /// The size does not divide into latent tokens.
    #[error("the size {size} is not a multiple of {unit} pixels in both directions")]
    Size {
        /// The size asked for.
        size: ImageSize,
        /// Side of the pixel square of one token.
        unit: usize,
    },
    /// The editor was loaded without its encoders.
    #[error("this editor has only its transformer, load all parts to encode and decode")]
    NoEncoders,
    /// The prompt can't be tokenized.
    #[error(transparent)]
    Tokenize(#[from] TokenizeError),
}
