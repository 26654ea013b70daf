//! All that a learner carries from one iteration to the next.

use std::borrow::Cow;

use safetensors::tensor::{Dtype, SafeTensors, View};

use crate::adamw::{AdamWConfig, Moments};
use crate::clip;
use crate::schedule::{self, OldPolicySchedule};

/// The learner's state after `step` optimizer updates.
///
/// Adapters are flat f32 vectors in the order of `LoraAdapter::to_flat`. The state
/// is a link of a content-addressed chain: equal states have equal bytes, so the
/// hash of [`to_bytes`](Self::to_bytes) tells whether ranks agree.
#[derive(Clone, Debug, PartialEq)]
pub struct LearnerState {
    /// Optimizer updates made so far.
    pub step: u64,
    /// The trained adapter.
    pub theta: Vec<f32>,
    /// Adam's average of the gradient.
    pub adam_m: Vec<f32>,
    /// Adam's average of the squared gradient.
    pub adam_v: Vec<f32>,
    /// Average of the trained adapter, for evaluation and export.
    pub ema: Vec<f32>,
    /// The adapter that samples the next iteration.
    pub old: Vec<f32>,
}

/// How a gradient becomes the next state.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct UpdateConfig {
    /// The optimizer.
    pub adamw: AdamWConfig,
    /// Longest gradient that is applied as it is.
    pub max_grad_norm: f64,
    /// How the old policy follows.
    pub old_policy: OldPolicySchedule,
    /// Most of itself that the EMA keeps.
    pub ema_decay_max: f64,
}

impl Default for UpdateConfig {
    fn default() -> Self {
        Self {
            adamw: AdamWConfig::default(),
            max_grad_norm: 1.0,
            old_policy: OldPolicySchedule::Default,
            ema_decay_max: 0.9,
        }
    }
}

/// Why bytes are not a learner state.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The bytes are not a safetensors file.
    #[error("learner state is not a safetensors file: {0}")]
    Format(#[from] safetensors::SafeTensorError),
    /// A tensor is of another type or shape.
    #[error("tensor {name} of the learner state is {dtype:?} {shape:?}, expected {expected}")]
    Tensor {
        /// The tensor.
        name: &'static str,
        /// Its type.
        dtype: Dtype,
        /// Its shape.
        shape: Vec<usize>,
        /// What it should be.
        expected: String,
    },
}

impl LearnerState {
    /// The state before the first update: all policies are the given adapter.
    pub fn initial(theta: Vec<f32>) -> Self {
        let zeros = vec![0.0; theta.len()];
        Self {
            step: 0,
            adam_m: zeros.clone(),
            adam_v: zeros,
            ema: theta.clone(),
            old: theta.clone(),
            theta,
        }
    }

    /// Makes one optimizer update: clip, AdamW, EMA, old policy.
    ///
    /// Returns the norm of the gradient before clipping.
    ///
    /// # Panics
    ///
    /// If the gradient is not as long as the adapter.
    pub fn update(&mut self, mut gradient: Vec<f32>, config: &UpdateConfig) -> f64 {
        self.step += 1;
        let norm = clip::clip_by_norm(&mut gradient, config.max_grad_norm);
        let moments = Moments {
            first: &mut self.adam_m,
            second: &mut self.adam_v,
        };
        config
            .adamw
            .update(self.step, &mut self.theta, &gradient, moments);
        let decay = schedule::ema_decay(self.step, config.ema_decay_max);
        schedule::follow(&mut self.ema, &self.theta, decay);
        schedule::follow(&mut self.old, &self.theta, config.old_policy.eta(self.step));
        norm
    }

    /// The state as safetensors, the same bytes for the same state.
    pub fn to_bytes(&self) -> Vec<u8> {
        let step = [self.step];
        let mut tensors = vec![(
            "step",
            Raw {
                dtype: Dtype::U64,
                shape: vec![1],
                bytes: bytemuck::cast_slice(&step),
            },
        )];
        for (name, values) in self.vectors() {
            let bytes = bytemuck::cast_slice(values);
            tensors.push((
                name,
                Raw {
                    dtype: Dtype::F32,
                    shape: vec![values.len()],
                    bytes,
                },
            ));
        }
        safetensors::serialize(tensors, None).expect("names and sizes are right by construction")
    }

    /// Reads what [`to_bytes`](Self::to_bytes) wrote.
    ///
    /// # Errors
    ///
    /// If the bytes are no safetensors file, or a tensor is missing or of another
    /// type or length than the trained adapter.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, StateError> {
        let tensors = SafeTensors::deserialize(bytes)?;
        let step = values::<u64>(&tensors, "step", Dtype::U64, Some(1))?[0];
        let theta = values::<f32>(&tensors, "theta", Dtype::F32, None)?;
        let vector = |name| values::<f32>(&tensors, name, Dtype::F32, Some(theta.len()));
        Ok(Self {
            step,
            adam_m: vector("adam_m")?,
            adam_v: vector("adam_v")?,
            ema: vector("ema")?,
            old: vector("old")?,
            theta,
        })
    }

    /// Hash of the state's bytes.
    pub fn content_hash(&self) -> blake3::Hash {
        blake3::hash(&self.to_bytes())
    }

    fn vectors(&self) -> [(&'static str, &[f32]); 5] {
        [
            ("theta", &self.theta),
            ("adam_m", &self.adam_m),
            ("adam_v", &self.adam_v),
            ("ema", &self.ema),
            ("old", &self.old),
        ]
    }
}

fn values<T: bytemuck::Pod>(
    tensors: &SafeTensors<'_>,
    name: &'static str,
    dtype: Dtype,
    len: Option<usize>,
) -> Result<Vec<T>, StateError> {
    let view = tensors.tensor(name)?;
    let shape = view.shape().to_vec();
    let fits = view.dtype() == dtype && shape.len() == 1 && len.is_none_or(|n| shape[0] == n);
    if !fits {
        let length = len.map_or_else(|| "n".to_owned(), |n| n.to_string());
        let expected = format!("{dtype:?} [{length}]");
        return Err(StateError::Tensor {
            name,
            dtype: view.dtype(),
            shape,
            expected,
        });
    }
    // The file's bytes need not be aligned for T.
    Ok(bytemuck::pod_collect_to_vec(view.data()))
}

struct Raw<'a> {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: &'a [u8],
}

impl View for Raw<'_> {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(self.bytes)
    }

    fn data_len(&self) -> usize {
        self.bytes.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trained() -> LearnerState {
        let mut state = LearnerState::initial(vec![0.1, -0.2, 0.3]);
        state.update(vec![1.0, 2.0, -3.0], &UpdateConfig::default());
        state
    }

    #[test]
    fn bytes_round_trip_and_are_canonical() {
        let state = trained();
        let bytes = state.to_bytes();
        let read = LearnerState::from_bytes(&bytes).unwrap();
        assert_eq!(read, state);
        assert_eq!(read.to_bytes(), bytes);
        assert_eq!(read.content_hash(), state.content_hash());
    }

    #[test]
    fn resuming_from_bytes_changes_no_bit() {
        let gradient = vec![0.5, -1.5, 0.25];
        let mut straight = trained();
        let mut resumed = LearnerState::from_bytes(&straight.to_bytes()).unwrap();
        straight.update(gradient.clone(), &UpdateConfig::default());
        resumed.update(gradient, &UpdateConfig::default());
        assert_eq!(straight.to_bytes(), resumed.to_bytes());
    }

    #[test]
    fn policies_start_equal_and_part_with_the_first_update() {
        let state = LearnerState::initial(vec![0.1, -0.2]);
        assert!(state.theta == state.old && state.theta == state.ema);
        let after = trained();
        let start = [0.1f32, -0.2, 0.3];
        for (i, start) in start.iter().enumerate() {
            let moved = after.theta[i] - start;
            assert!((after.old[i] - start - 0.999 * moved).abs() < 1e-7);
            assert!((after.ema[i] - start - 9.0 / 11.0 * moved).abs() < 1e-7);
        }
    }

    #[test]
    fn wrong_lengths_are_named() {
        let mut state = trained();
        state.old.pop();
        let error = LearnerState::from_bytes(&state.to_bytes())
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("old") && error.contains("[2]") && error.contains("F32 [3]"),
            "{error}"
        );
        assert!(LearnerState::from_bytes(b"nonsense").is_err());
    }
}
