//! What a supervised fine-tuning is told.

use std::path::PathBuf;

use burn::tensor::Device;
use retouch_models::lora::LoraConfig;

use super::SftError;
use super::learning_rate::{Decay, LearningRate};
use crate::adamw::AdamWConfig;

/// A supervised fine-tuning.
#[derive(Clone, Debug)]
pub struct SftOptions {
    /// The base editor, a folder in diffusers' layout.
    pub base: PathBuf,
    /// A dataset folder whose rows have targets.
    pub dataset: PathBuf,
    /// Where the result, the log and the checkpoints go.
    pub output: PathBuf,
    /// What is trained.
    pub trained: Trained,
    /// Height of the training images in pixels.
    pub height: usize,
    /// Width of the training images in pixels.
    pub width: usize,
    /// Prompt tokens.
    pub max_sequence_length: usize,
    /// Guidance that the model is given, if it takes any.
    pub guidance_scale: f64,
    /// Optimizer updates.
    pub steps: u64,
    /// Rows per update.
    pub batch_size: usize,
    /// Most rows in one forward pass.
    pub micro_batch_size: usize,
    /// The optimizer.
    pub adamw: AdamWConfig,
    /// How the learning rate changes.
    pub learning_rate: LearningRate,
    /// Longest gradient that is applied as it is.
    pub max_grad_norm: f64,
    /// Most of itself that the EMA keeps; the EMA is what is saved. 0 saves the parameters.
    pub ema_decay_max: f64,
    /// How noise levels are drawn.
    pub noise_levels: LogitNormal,
    /// Decides the initialisation, the order of rows, and all noise.
    pub seed: u64,
    /// Where to compute.
    pub device: Device,
    /// Held-out rows that the loss is measured on; 0 measures nothing.
    pub validation_rows: usize,
    /// Updates between two measurements.
    pub validate_every: u64,
    /// Updates between two checkpoints; a training that is started again goes on from the last.
    pub checkpoint_every: u64,
}

/// What a fine-tuning changes.
#[derive(Clone, Debug, PartialEq)]
pub enum Trained {
    /// An adapter on the transformer.
    Lora(LoraConfig),
    /// All parameters of some components.
    Full {
        /// What the transformer, and the text encoders if trained, start from.
        start: Start,
        /// Whether T5 and CLIP are trained too.
        text_encoders: TextEncoders,
    },
}

/// What a component starts from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// The folder's weights.
    Weights,
    /// Random parameters of the folder's configuration.
    Random,
}

/// What becomes of the text encoders.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TextEncoders {
    /// They stay as they are, and every prompt is encoded once.
    Frozen,
    /// They are trained with the transformer.
    Trained,
}

/// Noise levels in 0..1 whose logit is Gaussian.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LogitNormal {
    /// Mean of the logit.
    pub mean: f64,
    /// Its standard deviation.
    pub std: f64,
}

impl Default for LogitNormal {
    fn default() -> Self {
        Self {
            mean: 0.0,
            std: 1.0,
        }
    }
}

impl LogitNormal {
    /// The noise level of a standard Gaussian draw.
    pub fn level(&self, gaussian: f64) -> f64 {
        1.0 / (1.0 + (-(self.mean + self.std * gaussian)).exp())
    }
}

impl SftOptions {
    /// A training with the usual settings: 64 x 64 pixels, 1,000 updates of 48 rows, a
    /// constant learning rate of 3e-4 after 100 updates of warm-up, on the CPU.
    pub fn new(base: PathBuf, dataset: PathBuf, output: PathBuf, trained: Trained) -> Self {
        Self {
            base,
            dataset,
            output,
            trained,
            height: 64,
            width: 64,
            max_sequence_length: 32,
            guidance_scale: 2.5,
            steps: 1_000,
            batch_size: 48,
            micro_batch_size: 24,
            adamw: AdamWConfig::default(),
            learning_rate: LearningRate {
                warmup_steps: 100,
                decay: Decay::Constant,
            },
            max_grad_norm: 1.0,
            ema_decay_max: 0.99,
            noise_levels: LogitNormal::default(),
            seed: 0,
            device: Device::flex(),
            validation_rows: 64,
            validate_every: 100,
            checkpoint_every: 100,
        }
    }

    /// Whether the text encoders are trained.
    pub(super) fn text_encoders(&self) -> TextEncoders {
        match self.trained {
            Trained::Lora(_) => TextEncoders::Frozen,
            Trained::Full { text_encoders, .. } => text_encoders,
        }
    }

    /// Refuses numbers that no training can be made with.
    pub(super) fn check(&self) -> Result<(), SftError> {
        let counts = [
            ("steps", self.steps),
            ("batch_size", self.batch_size as u64),
            ("micro_batch_size", self.micro_batch_size as u64),
            ("validate_every", self.validate_every),
            ("checkpoint_every", self.checkpoint_every),
        ];
        let zero = counts.into_iter().find(|(_, count)| *count == 0);
        if let Some((option, count)) = zero {
            return Err(wrong(option, count, "at least 1"));
        }
        if !(self.adamw.learning_rate > 0.0 && self.adamw.learning_rate.is_finite()) {
            return Err(wrong(
                "learning_rate",
                self.adamw.learning_rate,
                "a positive number",
            ));
        }
        if !(0.0..1.0).contains(&self.ema_decay_max) {
            return Err(wrong(
                "ema_decay_max",
                self.ema_decay_max,
                "a number from 0 to below 1",
            ));
        }
        Ok(())
    }
}

fn wrong(option: &'static str, value: impl ToString, expected: &'static str) -> SftError {
    SftError::Option {
        option,
        value: value.to_string(),
        expected,
    }
}
