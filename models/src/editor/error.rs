use super::ImageSize;
use crate::image_processor::ImageError;
use crate::scheduler::ScheduleError;
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
    /// More source images than the base model takes, or none.
    #[error("{found} source images, a {class} takes {}", one_to(*sources_max))]
    Sources {
        /// How many were given.
        found: usize,
        /// The base model's pipeline.
        class: &'static str,
        /// The most that it takes.
        sources_max: usize,
    },
    /// The editor was loaded without its encoders.
    #[error("this editor has only its transformer, load all parts to encode and decode")]
    NoEncoders,
    /// The prompt can't be tokenized.
    #[error(transparent)]
    Tokenize(#[from] TokenizeError),
    /// The prompt holds markup, which would be taken for the template's own.
    #[error("the prompt contains {token}, which is a control token of the text encoder")]
    ControlToken {
        /// The token.
        token: String,
    },
    /// The prompt and its images are more or fewer tokens than the text encoder can use.
    #[error("the prompt and its images are {tokens} tokens, the text encoder takes {min} to {max}")]
    PromptLength {
        /// How many there are.
        tokens: usize,
        /// The fewest.
        min: usize,
        /// The most.
        max: usize,
    },
    /// There are no noise levels for so many steps.
    #[error(transparent)]
    Schedule(#[from] ScheduleError),
    /// A source image can't be shown to the text encoder.
    #[error(transparent)]
    Image(#[from] ImageError),
}

fn one_to(sources_max: usize) -> String {
    match sources_max {
        1 => "one only".to_owned(),
        more => format!("1 to {more}"),
    }
}
