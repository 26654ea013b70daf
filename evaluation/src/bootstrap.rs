//! Means with 95 % intervals, from a seeded bootstrap.

use rand::RngExt;
use rand::SeedableRng;
use rand_chacha::ChaCha12Rng;
use serde::{Deserialize, Serialize};

/// Resamplings behind an interval.
const RESAMPLINGS: usize = 10_000;

/// A mean and its 95 % interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    /// The mean of the values.
    pub mean: f64,
    /// The 2.5th and the 97.5th percentile of the bootstrap's means.
    pub ci95: [f64; 2],
}

/// The mean of `values` with its percentile-bootstrap interval. No values give zeros.
///
/// A pair is one value: for the gain of `after` over `before` on the same pairs, see [`gain`].
pub fn mean(values: &[f64], seed: u64) -> Estimate {
    if values.is_empty() {
        return Estimate {
            mean: 0.0,
            ci95: [0.0; 2],
        };
    }
    let mut rng = ChaCha12Rng::seed_from_u64(seed);
    let mut means: Vec<f64> = (0..RESAMPLINGS)
        .map(|_| resampled_mean(values, &mut rng))
        .collect();
    means.sort_by(f64::total_cmp);
    let percentile = |part: f64| means[(part * (RESAMPLINGS - 1) as f64).round() as usize];
    Estimate {
        mean: values.iter().sum::<f64>() / values.len() as f64,
        ci95: [percentile(0.025), percentile(0.975)],
    }
}

/// The mean of `after - before` over pairs, with its interval from a paired bootstrap.
///
/// # Panics
/// If the two are not of one length.
pub fn gain(before: &[f64], after: &[f64], seed: u64) -> Estimate {
    assert_eq!(
        before.len(),
        after.len(),
        "a gain needs each pair before and after"
    );
    let differences: Vec<f64> = before.iter().zip(after).map(|(b, a)| a - b).collect();
    mean(&differences, seed)
}

fn resampled_mean(values: &[f64], rng: &mut ChaCha12Rng) -> f64 {
    let sum: f64 = values
        .iter()
        .map(|_| values[rng.random_range(0..values.len())])
        .sum();
    sum / values.len() as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interval_is_that_of_the_normal_approximation() {
        let values: Vec<f64> = (0..400).map(|i| f64::from(i % 20)).collect();
        let estimate = mean(&values, 1);
        let standard_error = (33.25_f64 / 400.0).sqrt();
        assert!((estimate.mean - 9.5).abs() < 1e-12);
        assert!((estimate.ci95[0] - (9.5 - 1.96 * standard_error)).abs() < 0.05);
        assert!((estimate.ci95[1] - (9.5 + 1.96 * standard_error)).abs() < 0.05);
    }

    #[test]
    fn a_paired_gain_sees_through_the_spread_of_the_pairs() {
        let before: Vec<f64> = (0..200).map(|i| f64::from(i % 50)).collect();
        let after: Vec<f64> = before.iter().map(|value| value + 0.5).collect();
        assert_eq!(
            gain(&before, &after, 2),
            Estimate {
                mean: 0.5,
                ci95: [0.5, 0.5]
            }
        );
    }

    #[test]
    fn the_seed_decides() {
        let values: Vec<f64> = (0..50).map(|i| f64::from(i).sqrt()).collect();
        assert_eq!(mean(&values, 3), mean(&values, 3));
        assert_ne!(mean(&values, 3).ci95, mean(&values, 4).ci95);
    }
}
