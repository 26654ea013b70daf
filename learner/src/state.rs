//! All that a learner carries from one iteration to the next.

use retouch_proto::config::OldPolicy;

use crate::adamw::{AdamWConfig, Moments};
use crate::clip;
use crate::schedule;
use crate::vectors::{self, VectorsError};

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
    /// Updates in which the learning rate grows to that of the optimizer.
    pub warmup_steps: u64,
    /// Longest gradient that is applied as it is.
    pub max_grad_norm: f64,
    /// How the old policy follows.
    pub old_policy: OldPolicy,
    /// Most of itself that the EMA keeps.
    pub ema_decay_max: f64,
}

impl UpdateConfig {
    /// What update number `step`, counted from 1, does.
    pub fn at(&self, step: u64) -> Update {
        let learning_rate = schedule::warm_up(self.adamw.learning_rate, step, self.warmup_steps);
        Update {
            adamw: AdamWConfig {
                learning_rate,
                ..self.adamw
            },
            max_grad_norm: self.max_grad_norm,
            eta: schedule::eta(self.old_policy, step),
            ema_decay: schedule::ema_decay(step, self.ema_decay_max),
        }
    }
}

/// One update, with the schedules' values at its step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Update {
    /// The optimizer.
    pub adamw: AdamWConfig,
    /// Longest gradient that is applied as it is.
    pub max_grad_norm: f64,
    /// Share of itself that the old policy keeps.
    pub eta: f64,
    /// Share of itself that the EMA keeps.
    pub ema_decay: f64,
}

impl Default for UpdateConfig {
    fn default() -> Self {
        Self {
            adamw: AdamWConfig::default(),
            warmup_steps: 0,
            max_grad_norm: 1.0,
            old_policy: OldPolicy::Default,
            ema_decay_max: 0.9,
        }
    }
}

/// The vectors of a state in its file.
const VECTORS: [&str; 5] = ["theta", "adam_m", "adam_v", "ema", "old"];

/// Bytes that are not a learner state.
#[derive(Debug, thiserror::Error)]
#[error("not a learner state: {0}")]
pub struct StateError(#[from] VectorsError);

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
    pub fn update(&mut self, gradient: Vec<f32>, config: &UpdateConfig) -> f64 {
        self.apply(gradient, &config.at(self.step + 1))
    }

    /// [`update`](Self::update) with the schedules' values given.
    ///
    /// # Panics
    ///
    /// If the gradient is not as long as the adapter.
    pub fn apply(&mut self, mut gradient: Vec<f32>, update: &Update) -> f64 {
        self.step += 1;
        let norm = clip::clip_by_norm(&mut gradient, update.max_grad_norm);
        let moments = Moments {
            first: &mut self.adam_m,
            second: &mut self.adam_v,
        };
        update
            .adamw
            .update(self.step, &mut self.theta, &gradient, moments);
        schedule::follow(&mut self.ema, &self.theta, update.ema_decay);
        schedule::follow(&mut self.old, &self.theta, update.eta);
        norm
    }

    /// The state as safetensors, the same bytes for the same state.
    pub fn to_bytes(&self) -> Vec<u8> {
        let values = [
            &self.theta,
            &self.adam_m,
            &self.adam_v,
            &self.ema,
            &self.old,
        ];
        let mut vectors = VECTORS.map(|name| (name, &[][..]));
        for (vector, values) in vectors.iter_mut().zip(values) {
            vector.1 = values;
        }
        vectors::to_bytes(self.step, &vectors)
    }

    /// Reads what [`to_bytes`](Self::to_bytes) wrote.
    ///
    /// # Errors
    ///
    /// If the bytes are no safetensors file, or a tensor is missing or of another
    /// type or length than the trained adapter.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, StateError> {
        let (step, [theta, adam_m, adam_v, ema, old]) = vectors::from_bytes(bytes, VECTORS)?;
        Ok(Self {
            step,
            theta,
            adam_m,
            adam_v,
            ema,
            old,
        })
    }

    /// Hash of the state's bytes.
    pub fn content_hash(&self) -> blake3::Hash {
        blake3::hash(&self.to_bytes())
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
    fn hostile_bytes_are_refused_or_understood() {
        retouch_hostile::bombard(&trained().to_bytes(), |bytes| {
            let _ = LearnerState::from_bytes(bytes);
        });
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
