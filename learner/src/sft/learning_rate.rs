//! How the learning rate changes over a training.

use std::f64::consts::PI;
use std::fmt;
use std::str::FromStr;

/// What the learning rate does after the warm-up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Decay {
    /// It stays.
    #[default]
    Constant,
    /// It falls to zero at the last step along half a cosine.
    Cosine,
}

/// The name of a decay that does not exist.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown learning rate schedule {0:?}: use constant or cosine")]
pub struct UnknownDecay(String);

impl FromStr for Decay {
    type Err = UnknownDecay;

    fn from_str(name: &str) -> Result<Self, UnknownDecay> {
        match name {
            "constant" => Ok(Self::Constant),
            "cosine" => Ok(Self::Cosine),
            other => Err(UnknownDecay(other.to_owned())),
        }
    }
}

impl fmt::Display for Decay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Constant => "constant",
            Self::Cosine => "cosine",
        })
    }
}

/// A linear warm-up from zero, then a decay.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LearningRate {
    /// Steps until the full rate is reached.
    pub warmup_steps: u64,
    /// What follows.
    pub decay: Decay,
}

impl LearningRate {
    /// The share of the full rate at update `step` (counted from 1) of `steps`.
    pub fn factor(&self, step: u64, steps: u64) -> f64 {
        if step <= self.warmup_steps {
            return step as f64 / self.warmup_steps as f64;
        }
        let rest = steps.saturating_sub(self.warmup_steps).max(1);
        let progress = (step - self.warmup_steps - 1) as f64 / rest as f64;
        match self.decay {
            Decay::Constant => 1.0,
            Decay::Cosine => 0.5 * (1.0 + (PI * progress.min(1.0)).cos()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warms_up_then_falls() {
        let rate = LearningRate {
            warmup_steps: 4,
            decay: Decay::Cosine,
        };
        assert_eq!(rate.factor(1, 104), 0.25);
        assert_eq!(rate.factor(4, 104), 1.0);
        assert_eq!(rate.factor(5, 104), 1.0);
        assert!((rate.factor(55, 104) - 0.5).abs() < 1e-12);
        assert!(rate.factor(104, 104) < 1e-3 && rate.factor(104, 104) > 0.0);
    }

    #[test]
    fn constant_without_warmup_is_always_one() {
        let rate = LearningRate::default();
        assert!((1..50).all(|step| rate.factor(step, 10) == 1.0));
    }
}
