//! What evaluating one pair gives.

use image::RgbImage;

use crate::pairs::{ORACLE_MAX, Pair};

/// One edit and its scores.
pub struct Scored {
    /// The edit.
    pub image: RgbImage,
    /// The weighted reward, 0..1.
    pub judge: f64,
    /// The score against the known target, 0..=[`ORACLE_MAX`], where there is one.
    pub oracle: Option<f64>,
}

/// A pair edited by the base and by the adapter, from the same initial noise.
pub struct Outcome {
    /// The pair.
    pub pair: Pair,
    /// The base's edit.
    pub before: Scored,
    /// The adapter's.
    pub after: Scored,
}

impl Outcome {
    /// Before, after and the scale's top: the oracle's where it is known, else the judge's.
    pub fn headline_scores(&self) -> (f64, f64, f64) {
        match (self.before.oracle, self.after.oracle) {
            (Some(before), Some(after)) => (before, after, ORACLE_MAX),
            _ => (self.before.judge, self.after.judge, 1.0),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// With these rewards, and five times as much by the oracle if there is one.
    pub(crate) fn outcome(task: &str, before: f64, after: f64, oracle: bool) -> Outcome {
        let scored = |judge: f64| Scored {
            image: RgbImage::new(1, 1),
            judge,
            oracle: oracle.then_some(judge * ORACLE_MAX),
        };
        Outcome {
            pair: Pair {
                prompt: "remove it".to_owned(),
                requirement: String::new(),
                task: task.to_owned(),
                sources: RgbImage::new(1, 1).into(),
                oracle: None,
            },
            before: scored(before),
            after: scored(after),
        }
    }

    #[test]
    fn the_oracle_has_the_headline_where_there_is_one() {
        let with = |oracle| outcome("add", 0.2, 0.4, oracle).headline_scores();
        assert_eq!(with(true), (1.0, 2.0, 5.0));
        assert_eq!(with(false), (0.2, 0.4, 1.0));
    }
}
