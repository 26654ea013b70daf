//! All that a learner carries from one iteration to the next.

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
    use retouch_proto::config::LearnerConfig;

    use super::*;
    use crate::schedule::Update;
    use crate::step::update;

    fn trained() -> LearnerState {
        let mut state = LearnerState::initial(vec![0.1, -0.2, 0.3]);
        train(&mut state, [1.0, 2.0, -3.0]);
        state
    }

    fn train(state: &mut LearnerState, gradient: [f32; 3]) {
        let now = Update::at(&LearnerConfig::default(), state.step + 1);
        update(state, gradient.into(), &now);
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
        let gradient = [0.5, -1.5, 0.25];
        let mut straight = trained();
        let mut resumed = LearnerState::from_bytes(&straight.to_bytes()).unwrap();
        train(&mut straight, gradient);
        train(&mut resumed, gradient);
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
