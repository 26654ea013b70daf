//! The judge: a Qwen2.5-VL model's logits as a reward.
//!
//! The model sees the source image, the instruction, the task's requirement and an edited image, and is asked for one
//! digit from 0 to 5. Nothing is decoded: the reward is read from the logits of the first answer token, over the six
//! digits only, `R = sum_k k p_k / 5`.

mod chat_template;
mod error;
mod inputs;
mod processor;
mod template;

pub(crate) use chat_template::ChatTemplate;
pub use error::JudgeError;
pub use inputs::{JudgeInputs, TokenLogits};
pub use processor::JudgeProcessor;
pub use template::{Template, TemplateError};

use std::path::Path;

use burn::tensor::{DType, Device, Tensor};
use image::RgbImage;

use crate::hub;
use crate::qwen2_5_vl::Qwen2_5Vl;
use crate::weights::Pretrained;
use processor::DIGITS;

/// A group of edits to be judged.
#[derive(Clone, Copy, Debug)]
pub struct JudgeRequest<'a> {
    /// The images that the edit is made of.
    pub sources: &'a [RgbImage],
    /// The candidates.
    pub edits: &'a [RgbImage],
    /// The instruction that the edits should carry out.
    pub prompt: &'a str,
    /// What the task requires of an edit.
    pub requirement: &'a str,
    /// The text that is put to the model; the judge's own where none is given.
    pub template: Option<&'a Template>,
}

/// What the judge thinks of one edit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct JudgeScore {
    /// `sum_k k p_k / 5`, in 0..1.
    pub reward: f64,
    /// The probabilities of the digits 0 to 5; they sum to 1.
    pub probabilities: [f64; DIGITS],
    /// Entropy of the probabilities in nats.
    pub entropy: f64,
}

/// A model with its processor.
#[derive(Debug)]
pub struct Judge {
    /// The model; on an autodiff device it can be trained through [`Judge::digit_logits`].
    pub model: Qwen2_5Vl,
    /// What makes its inputs.
    pub processor: JudgeProcessor,
}

impl Judge {
    /// Loads a transformers folder: `config.json`, `model.safetensors` or shards, `tokenizer.json`,
    /// `preprocessor_config.json`; or the model of an id, see [`hub::locate`]. The weights become f32.
    ///
    /// # Errors
    /// If a file is missing or broken, or the files contradict each other.
    pub fn load(folder: &Path, device: &Device) -> Result<Self, JudgeError> {
        Self::load_as(folder, device, DType::F32)
    }

    /// As [`Judge::load`], with the weights kept as `dtype`.
    ///
    /// # Errors
    /// As [`Judge::load`].
    pub fn load_as(folder: &Path, device: &Device, dtype: DType) -> Result<Self, JudgeError> {
        let folder = &hub::locate(folder)?;
        let model = Qwen2_5Vl::load_as(folder, device, dtype)?;
        let processor = JudgeProcessor::load(folder, model.config())?;
        Ok(Self { model, processor })
    }

    /// Saves a folder that [`Judge::load`] and transformers read.
    ///
    /// # Errors
    /// If the folder can't be written.
    pub fn save(&self, folder: &Path) -> Result<(), JudgeError> {
        self.model.save(folder)?;
        self.processor.save(folder)
    }

    /// Scores all edits of a group in one prefill.
    ///
    /// # Errors
    /// If an image or text can't be judged, or the model's output is not finite. Then no edit has a score.
    pub fn score(&self, request: &JudgeRequest<'_>) -> Result<Vec<JudgeScore>, JudgeError> {
        let inputs = self.processor.prepare(std::slice::from_ref(request))?;
        let logits = self.digit_logits(&inputs).into_data().convert::<f32>();
        let logits = logits.try_to_vec::<f32>().expect("just converted");
        let rows = logits.chunks_exact(DIGITS).enumerate();
        rows.map(|(edit, logits)| {
            JudgeScore::from_logits(logits).ok_or_else(|| JudgeError::NotFinite {
                edit,
                logits: logits.to_vec(),
            })
        })
        .collect()
    }

    /// The logits of the digits 0 to 5, differentiable in the model's parameters.
    ///
    /// # Shapes
    /// * output: `[inputs.rows(), 6]`
    pub fn digit_logits(&self, inputs: &JudgeInputs) -> Tensor<2> {
        inputs.answer_logits(&self.model, self.processor.digit_ids())
    }
}

impl JudgeScore {
    /// Softmax over the digits, in f64; nothing if a logit is not finite.
    fn from_logits(logits: &[f32]) -> Option<Self> {
        if !logits.iter().all(|logit| logit.is_finite()) {
            return None;
        }
        let logits: [f64; DIGITS] = std::array::from_fn(|digit| f64::from(logits[digit]));
        let largest = logits.into_iter().fold(f64::MIN, f64::max);
        let weights = logits.map(|logit| (logit - largest).exp());
        let sum: f64 = weights.iter().sum();
        let probabilities = weights.map(|weight| weight / sum);
        let expected: f64 = (0..DIGITS)
            .map(|digit| digit as f64 * probabilities[digit])
            .sum();
        let surprise = |p: &f64| if *p > 0.0 { -p * p.ln() } else { 0.0 };
        Some(Self {
            reward: expected / (DIGITS - 1) as f64,
            probabilities,
            entropy: probabilities.iter().map(surprise).sum(),
        })
    }
}

#[cfg(test)]
mod tests;
