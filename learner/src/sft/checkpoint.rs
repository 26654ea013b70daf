//! The optimizer's side of a fine-tuning, and its file.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::adamw::{AdamWConfig, Moments};
use crate::clip;
use crate::schedule;
use crate::vectors::{self, VectorsError};

const FILE: &str = "checkpoint.safetensors";
const VECTORS: [&str; 4] = ["parameters", "adam_m", "adam_v", "ema"];

/// Parameters and what an optimizer knows of them.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct SftState {
    /// Updates made.
    pub(super) step: u64,
    /// All trained values.
    pub(super) parameters: Vec<f32>,
    adam_m: Vec<f32>,
    adam_v: Vec<f32>,
    /// Average of the parameters.
    pub(super) ema: Vec<f32>,
}

/// Why a checkpoint can't be written or read.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The file can't be written or read.
    #[error("checkpoint {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is something else.
    #[error("checkpoint {path}: {source}")]
    Format {
        /// The file.
        path: PathBuf,
        /// Why.
        source: VectorsError,
    },
    /// The file is of another training.
    #[error(
        "checkpoint {path} has {found} trained values, this training has {expected}: remove it, \
         or choose another output folder"
    )]
    Length {
        /// The file.
        path: PathBuf,
        /// Values in the file.
        found: usize,
        /// Values of this training.
        expected: usize,
    },
}

/// How one gradient is applied.
pub(super) struct Step {
    pub(super) adamw: AdamWConfig,
    pub(super) max_grad_norm: f64,
    pub(super) ema_decay_max: f64,
}

impl SftState {
    pub(super) fn new(parameters: Vec<f32>) -> Self {
        let zeros = vec![0.0; parameters.len()];
        Self {
            step: 0,
            adam_m: zeros.clone(),
            adam_v: zeros,
            ema: parameters.clone(),
            parameters,
        }
    }

    /// One update; returns the norm of the gradient before clipping.
    pub(super) fn update(&mut self, mut gradient: Vec<f32>, config: &Step) -> f64 {
        self.step += 1;
        let norm = clip::clip_by_norm(&mut gradient, config.max_grad_norm);
        let moments = Moments {
            first: &mut self.adam_m,
            second: &mut self.adam_v,
        };
        config
            .adamw
            .update(self.step, &mut self.parameters, &gradient, moments);
        let decay = schedule::ema_decay(self.step, config.ema_decay_max);
        schedule::follow(&mut self.ema, &self.parameters, decay);
        norm
    }

    /// Writes the checkpoint of `folder`, whole or not at all.
    pub(super) fn save(&self, folder: &Path) -> Result<(), CheckpointError> {
        let path = folder.join(FILE);
        let values = [&self.parameters, &self.adam_m, &self.adam_v, &self.ema];
        let vectors = std::array::from_fn::<_, 4, _>(|i| (VECTORS[i], &values[i][..]));
        let partial = path.with_extension("partial");
        let write = || {
            let mut file = File::create(&partial)?;
            file.write_all(&vectors::to_bytes(self.step, &vectors))?;
            file.sync_all()?;
            fs::rename(&partial, &path)
        };
        write().map_err(|source| CheckpointError::Io {
            path: path.clone(),
            source,
        })
    }

    /// The checkpoint of `folder`, if there is one.
    pub(super) fn load(folder: &Path, expected: usize) -> Result<Option<Self>, CheckpointError> {
        let path = folder.join(FILE);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(CheckpointError::Io { path, source }),
        };
        let (step, [parameters, adam_m, adam_v, ema]) = vectors::from_bytes(&bytes, VECTORS)
            .map_err(|source| CheckpointError::Format {
                path: path.clone(),
                source,
            })?;
        if parameters.len() != expected {
            return Err(CheckpointError::Length {
                path,
                found: parameters.len(),
                expected,
            });
        }
        Ok(Some(Self {
            step,
            parameters,
            adam_m,
            adam_v,
            ema,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEP: Step = Step {
        adamw: AdamWConfig {
            learning_rate: 0.1,
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
            weight_decay: 0.0,
        },
        max_grad_norm: 1.0,
        ema_decay_max: 0.9,
    };

    #[test]
    fn a_resumed_state_goes_on_as_if_never_stopped() {
        let folder = tempfile::tempdir().unwrap();
        let mut straight = SftState::new(vec![0.5, -0.25]);
        straight.update(vec![1.0, 2.0], &STEP);
        straight.save(folder.path()).unwrap();
        let mut resumed = SftState::load(folder.path(), 2).unwrap().unwrap();
        straight.update(vec![-1.0, 0.5], &STEP);
        resumed.update(vec![-1.0, 0.5], &STEP);
        assert_eq!(straight, resumed);
    }

    #[test]
    fn checkpoints_of_other_trainings_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(SftState::load(folder.path(), 2).unwrap(), None);
        SftState::new(vec![0.0; 3]).save(folder.path()).unwrap();
        let error = SftState::load(folder.path(), 2).unwrap_err().to_string();
        assert!(
            error.contains("has 3 trained values, this training has 2"),
            "{error}"
        );
        fs::write(folder.path().join(FILE), "no").unwrap();
        assert!(
            SftState::load(folder.path(), 2)
                .unwrap_err()
                .to_string()
                .contains("safetensors")
        );
    }
}
