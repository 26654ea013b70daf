//! What can go wrong with a judge.

use std::path::PathBuf;

use super::TemplateError;
use crate::image_processor::{Contradiction, ImageError};
use crate::weights::LoadError;

/// Why a judge can't be loaded or can't give a score. A judge that fails gives no score at all.
#[derive(Debug, thiserror::Error)]
pub enum JudgeError {
    /// A file of the model folder is missing, broken or does not fit.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The tokenizer can't be read.
    #[error("{}: {reason}", path.display())]
    Tokenizer {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The score is read from single tokens, and a digit is none.
    #[error(
        "the judge's tokenizer has no single token for the digit {digit}; it splits it into {tokens} tokens"
    )]
    Digit {
        /// The digit.
        digit: u8,
        /// The number of tokens it becomes.
        tokens: usize,
    },
    /// The configuration names a token that the tokenizer lacks.
    #[error("{field} = {id} in the judge's config.json is no token of its tokenizer")]
    TokenId {
        /// The field of the configuration.
        field: &'static str,
        /// The id it names.
        id: u32,
    },
    /// The tokenizer knows tokens that the model does not.
    #[error(
        "the judge's tokenizer has tokens up to {id_max}, its config.json says vocab_size = {vocab_size}"
    )]
    Vocabulary {
        /// The tokenizer's largest id.
        id_max: u32,
        /// Number of embeddings.
        vocab_size: usize,
    },
    /// Two files of the model folder contradict each other.
    #[error(
        "{} is {} in the judge's preprocessor_config.json and {} in its config.json",
        .0.field,
        .0.found,
        .0.expected
    )]
    Contradiction(Contradiction),
    /// The template can't be used.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// An image can't be judged.
    #[error("{image}: {source}")]
    Image {
        /// Which image.
        image: String,
        /// What is wrong with it.
        source: ImageError,
    },
    /// A text would be read as markup by the model.
    #[error("the {field} contains {token}, a control token of the judge")]
    ControlToken {
        /// `prompt` or `requirement`.
        field: &'static str,
        /// The token.
        token: String,
    },
    /// The prompt is longer than the model's positions.
    #[error(
        "the judgement takes {tokens} tokens, the judge reads at most {tokens_max}; lower max_pixels in its preprocessor_config.json or shorten the template"
    )]
    TooLong {
        /// Tokens of the longest row.
        tokens: usize,
        /// The model's `max_position_embeddings`.
        tokens_max: usize,
    },
    /// The tokenizer can't tokenise a text.
    #[error("the judge's tokenizer fails: {reason}")]
    Text {
        /// What it said.
        reason: String,
    },
    /// There is nothing to judge.
    #[error("a judgement needs at least one edited image, got none")]
    NoEdits,
    /// The model's output is not a number.
    #[error("the judge's logits for edit {edit} are not finite: {logits:?}")]
    NotFinite {
        /// Which of the edits, from 0.
        edit: usize,
        /// The six logits.
        logits: Vec<f32>,
    },
}
