//! Supervised fine-tuning of an editor by flow matching.
//!
//! A target image's latent x0 is noised to x_t = (1 - t) x0 + t eps, and the transformer
//! learns to predict eps - x0 from x_t, t, the instruction and the source image.
//!
//! Reading order: [`options`](SftOptions) and the dataset's pairs (`rows`); what is encoded
//! once (`examples`); what is trained (`network`); one update and all of them
//! (`training`); [`log`] and `checkpoint` are what stays on disk.

mod base;
mod checkpoint;
mod examples;
pub mod flat;
mod learning_rate;
pub mod log;
mod network;
mod options;
mod rows;
mod training;

use std::path::PathBuf;

pub use checkpoint::CheckpointError;
pub use learning_rate::{Decay, LearningRate, UnknownDecay};
pub use options::{LogitNormal, SftOptions, Start, TextEncoders, Trained};
pub use training::{SftOutcome, SftProgress, train};

/// Why a fine-tuning failed.
#[derive(Debug, thiserror::Error)]
pub enum SftError {
    /// An option makes no sense.
    #[error("{option} is {value}, expected {expected}")]
    Option {
        /// The option.
        option: &'static str,
        /// Its value.
        value: String,
        /// What would be right.
        expected: &'static str,
    },
    /// The dataset's rows can't be used.
    #[error(transparent)]
    Dataset(#[from] retouch_dataset::DatasetError),
    /// An image can't be read.
    #[error("image {path}: {source}")]
    Image {
        /// The file.
        path: PathBuf,
        /// Why.
        source: retouch_models::images::ImageFileError,
    },
    /// The base can't be read, or the result can't be written.
    #[error(transparent)]
    Model(#[from] retouch_models::weights::LoadError),
    /// An image or a prompt can't be encoded.
    #[error(transparent)]
    Encode(#[from] retouch_models::editor::EditError),
    /// A prompt can't be tokenized.
    #[error(transparent)]
    Tokenize(#[from] retouch_models::tokenizer::TokenizeError),
    /// A checkpoint can't be written or read.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The log can't be written.
    #[error(transparent)]
    Log(#[from] log::LogError),
    /// The output folder can't be made.
    #[error("output folder {path}: {source}")]
    Output {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The loss or its gradient is NaN or infinite.
    #[error("{what} is {value} at step {step}: a lower learning rate or a longer warm-up may help")]
    NotFinite {
        /// The loss or the gradient norm.
        what: &'static str,
        /// Its value.
        value: f64,
        /// The update.
        step: u64,
    },
    /// The caller asked to stop; a checkpoint was written.
    #[error("fine-tuning stopped after step {0}; started again, it goes on from there")]
    Stopped(u64),
}
