//! Noise levels of the sampling steps, as diffusers' `FlowMatchEulerDiscreteScheduler` spaces them.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::weights::{LoadError, read_config, write_config};

const FILE: &str = "scheduler_config.json";

/// The published configuration and the schedule that it defines.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(
    tag = "_class_name",
    rename = "FlowMatchEulerDiscreteScheduler",
    default
)]
pub struct FlowMatchScheduler {
    /// Whether the shift depends on the number of image tokens.
    pub use_dynamic_shifting: bool,
    /// How that shift enters.
    pub time_shift_type: TimeShiftType,
    /// Token count at which mu is `base_shift`.
    pub base_image_seq_len: usize,
    /// Token count at which mu is `max_shift`.
    pub max_image_seq_len: usize,
    /// mu of the smallest images.
    pub base_shift: f64,
    /// mu of the largest images.
    pub max_shift: f64,
    /// The shift where it does not depend on the image.
    pub shift: f64,
    /// What the last noise level before 0 is stretched to.
    pub shift_terminal: Option<f64>,
    use_karras_sigmas: bool,
    use_exponential_sigmas: bool,
    use_beta_sigmas: bool,
    invert_sigmas: bool,
}

/// A number of steps that a schedule has no noise levels for.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
pub enum ScheduleError {
    /// None at all.
    #[error("num_inference_steps = 0, expected at least 1")]
    NoSteps,
    /// A single noise level is the first and the last, which the reference makes NaN of.
    #[error(
        "num_inference_steps = 1, but the scheduler's shift_terminal = {shift_terminal} moves the last of several noise levels; expected at least 2"
    )]
    OneStep {
        /// The configuration's field.
        shift_terminal: f64,
    },
}

/// How mu shifts the noise levels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TimeShiftType {
    /// By e^mu.
    Exponential,
    /// By mu itself.
    Linear,
}

impl Default for FlowMatchScheduler {
    fn default() -> Self {
        Self {
            use_dynamic_shifting: false,
            time_shift_type: TimeShiftType::Exponential,
            base_image_seq_len: 256,
            max_image_seq_len: 4096,
            base_shift: 0.5,
            max_shift: 1.15,
            shift: 1.0,
            shift_terminal: None,
            use_karras_sigmas: false,
            use_exponential_sigmas: false,
            use_beta_sigmas: false,
            invert_sigmas: false,
        }
    }
}

impl FlowMatchScheduler {
    /// The schedule of a diffusers folder's `scheduler_config.json`.
    ///
    /// # Errors
    /// If the file can't be read or asks for a spacing that is not supported.
    pub fn load(folder: &Path) -> Result<Self, LoadError> {
        Self::from_file(&folder.join(FILE))
    }

    /// The schedule of a configuration file.
    ///
    /// # Errors
    /// As [`FlowMatchScheduler::load`].
    pub fn from_file(path: &Path) -> Result<Self, LoadError> {
        let scheduler: Self = read_config(path)?;
        let unsupported = [
            ("use_karras_sigmas", scheduler.use_karras_sigmas),
            ("use_exponential_sigmas", scheduler.use_exponential_sigmas),
            ("use_beta_sigmas", scheduler.use_beta_sigmas),
            ("invert_sigmas", scheduler.invert_sigmas),
        ];
        match unsupported.into_iter().find(|(_, set)| *set) {
            None => Ok(scheduler),
            Some((field, _)) => Err(LoadError::unsupported(path, field, true, "false")),
        }
    }

    /// Saves the configuration into a folder.
    ///
    /// # Errors
    /// If the file can't be written.
    pub fn save(&self, folder: &Path) -> Result<(), LoadError> {
        std::fs::create_dir_all(folder).map_err(|source| LoadError::io(folder, source))?;
        write_config(&folder.join(FILE), self)
    }

    /// The noise levels from 1 to 0, one more than there are steps.
    ///
    /// `image_seq_len` counts the tokens that are sampled, not those of the source image.
    ///
    /// # Errors
    /// If there are no steps, or a single one where the last is to be stretched.
    pub fn sigmas(
        &self,
        num_inference_steps: usize,
        image_seq_len: usize,
    ) -> Result<Vec<f32>, ScheduleError> {
        match (num_inference_steps, self.shift_terminal) {
            (0, _) => return Err(ScheduleError::NoSteps),
            (1, Some(shift_terminal)) => return Err(ScheduleError::OneStep { shift_terminal }),
            _ => {}
        }
        let factor = self.shift_factor(image_seq_len);
        let steps = num_inference_steps as f64;
        let shifted = (0..num_inference_steps).map(|i| {
            let sigma = linspace(1.0, 1.0 / steps, num_inference_steps, i);
            factor / (factor + (1.0 / sigma - 1.0))
        });
        let mut sigmas: Vec<f64> = shifted.collect();
        if let (Some(terminal), Some(&last)) = (self.shift_terminal, sigmas.last()) {
            let stretch = (1.0 - terminal) / (1.0 - last);
            sigmas
                .iter_mut()
                .for_each(|sigma| *sigma = 1.0 - (1.0 - *sigma) * stretch);
        }
        let sigmas = sigmas.into_iter().chain([0.0]);
        Ok(sigmas.map(|sigma| sigma as f32).collect())
    }

    fn shift_factor(&self, image_seq_len: usize) -> f64 {
        if !self.use_dynamic_shifting {
            return self.shift;
        }
        match self.time_shift_type {
            TimeShiftType::Exponential => self.mu(image_seq_len).exp(),
            TimeShiftType::Linear => self.mu(image_seq_len),
        }
    }

    /// Linear in the token count, beyond both ends too.
    fn mu(&self, image_seq_len: usize) -> f64 {
        let range = self.max_image_seq_len as f64 - self.base_image_seq_len as f64;
        let slope = (self.max_shift - self.base_shift) / range;
        self.base_shift + slope * (image_seq_len as f64 - self.base_image_seq_len as f64)
    }
}

fn linspace(from: f64, to: f64, count: usize, i: usize) -> f64 {
    if count == 1 {
        return from;
    }
    from + (to - from) * i as f64 / (count - 1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::golden::Case;
    use burn::tensor::{Device, Tensor};

    #[test]
    fn schedules_equal_the_reference() {
        for case in Case::all("scheduler") {
            let count = |key: &str| -> usize { case.parameter(key).parse().unwrap() };
            let scheduler = FlowMatchScheduler::from_file(&case.path("config.json")).unwrap();
            let steps = count("num_inference_steps");
            let sigmas = scheduler.sigmas(steps, count("image_seq_len")).unwrap();
            let tensor = |values: &[f32]| Tensor::<1>::from_floats(values, &Device::flex());
            case.check("out.sigmas", tensor(&sigmas), 1e-6);
            let timesteps = tensor(&sigmas[..sigmas.len() - 1]) * 1000.0;
            case.check("out.timesteps", timesteps, 1e-6);
        }
    }

    #[test]
    fn one_step_goes_from_noise_to_image() {
        let sigmas = FlowMatchScheduler::default().sigmas(1, 100);
        assert_eq!(sigmas, Ok(vec![1.0, 0.0]));
    }

    #[test]
    fn steps_without_noise_levels_are_errors() {
        let mut scheduler = FlowMatchScheduler::default();
        assert_eq!(scheduler.sigmas(0, 100), Err(ScheduleError::NoSteps));
        scheduler.shift_terminal = Some(0.02);
        let error = scheduler.sigmas(1, 100).unwrap_err().to_string();
        assert!(
            error.starts_with("num_inference_steps = 1, but the scheduler's shift_terminal = 0.02"),
            "{error}"
        );
        let sigmas = scheduler.sigmas(2, 100).unwrap();
        assert!((sigmas[1] - 0.02).abs() < 1e-6, "{sigmas:?}");
    }

    #[test]
    fn other_spacings_are_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE);
        std::fs::write(&path, r#"{"use_karras_sigmas": true}"#).unwrap();
        let error = FlowMatchScheduler::load(folder.path())
            .unwrap_err()
            .to_string();
        assert!(error.ends_with("use_karras_sigmas = true is not supported; supported: false"));
    }
}
