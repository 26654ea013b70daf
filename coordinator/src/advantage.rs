//! From rewards to advantages.
//!
//! A_i = (R_i - mean of the group) / (std + 1e-4), with the population standard deviation of all
//! rewards of the iteration or of the group, in f64 and in group-id order.

use retouch_proto::config::AdvantageStd;

/// Keeps the division finite when all rewards are equal.
const EPSILON: f64 = 1e-4;

/// Mean and population standard deviation.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Moments {
    /// The mean; 0 of nothing.
    pub mean: f64,
    /// The population standard deviation; 0 of nothing.
    pub std: f64,
}

impl Moments {
    /// The moments of these values, summed in order.
    pub fn of(values: impl Iterator<Item = f64> + Clone) -> Self {
        let count = values.clone().count();
        if count == 0 {
            return Self::default();
        }
        let mean = values.clone().sum::<f64>() / count as f64;
        let variance = values.map(|value| (value - mean).powi(2)).sum::<f64>() / count as f64;
        Self {
            mean,
            std: variance.sqrt(),
        }
    }
}

/// Advantages of all scored groups of an iteration, in the same order and shape as `rewards`.
pub fn advantages(rewards: &[Vec<f64>], std: AdvantageStd) -> Vec<Vec<f64>> {
    let global = Moments::of(rewards.iter().flatten().copied()).std;
    rewards
        .iter()
        .map(|group| group_advantages(group, std, global))
        .collect()
}

fn group_advantages(rewards: &[f64], std: AdvantageStd, global: f64) -> Vec<f64> {
    let moments = Moments::of(rewards.iter().copied());
    let std = match std {
        AdvantageStd::Global => global,
        AdvantageStd::Group => moments.std,
    };
    rewards
        .iter()
        .map(|reward| (reward - moments.mean) / (std + EPSILON))
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn worked_example() {
        let rewards = [vec![0.0, 1.0], vec![0.5, 0.5]];
        // All four rewards: mean 0.5, variance (0.25 + 0.25) / 4 = 0.125.
        let global = 0.5 / (0.125_f64.sqrt() + 1e-4);
        let own = 0.5 / (0.5 + 1e-4);
        assert_eq!(
            advantages(&rewards, AdvantageStd::Global),
            [[-global, global], [0.0, 0.0]]
        );
        assert_eq!(
            advantages(&rewards, AdvantageStd::Group),
            [[-own, own], [0.0, 0.0]]
        );
    }

    #[test]
    fn nothing_gives_nothing() {
        assert!(advantages(&[], AdvantageStd::Global).is_empty());
        assert_eq!(
            advantages(&[vec![]], AdvantageStd::Group),
            [Vec::<f64>::new()]
        );
    }

    proptest! {
        #[test]
        fn groups_are_centred_and_finite(
            rewards in prop::collection::vec(prop::collection::vec(0.0..=1.0, 2..16), 1..12),
        ) {
            for std in [AdvantageStd::Global, AdvantageStd::Group] {
                for group in advantages(&rewards, std) {
                    let sum: f64 = group.iter().sum();
                    prop_assert!(sum.abs() < 1e-6, "sum {sum}");
                    prop_assert!(group.iter().all(|advantage| advantage.is_finite()));
                }
            }
        }
    }
}
