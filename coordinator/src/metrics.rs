//! The reward diagnostics of an iteration, under the names that users of the method know.

use std::collections::BTreeMap;

use retouch_proto::metrics::TOP_PERCENT;
use retouch_proto::status::IterationMetrics;
use retouch_proto::task::SampleScore;

use crate::advantage::Moments;

/// Fills in everything that follows from the rewards of the scored groups.
pub fn describe_rewards(rewards: &[Vec<f64>], metrics: &mut IterationMetrics) {
    let all = Moments::of(rewards.iter().flatten().copied());
    let stds: Vec<f64> = rewards
        .iter()
        .map(|group| Moments::of(group.iter().copied()).std)
        .collect();
    metrics.reward_mean = all.mean;
    metrics.reward_std = all.std;
    metrics.reward_std_mean = mean(&stds);
    let zero_stds = rewards.iter().filter(|group| all_equal(group)).count();
    metrics.zero_std_ratio = ratio(zero_stds, rewards.len());
    metrics.reward_top = reward_top(rewards);
}

/// Mean score of each reward term, by its name, over the samples that have one.
pub fn term_means<'a>(scores: impl Iterator<Item = &'a SampleScore>) -> BTreeMap<String, f64> {
    let mut values: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    for term in scores.flat_map(|score| &score.terms) {
        values
            .entry(term.name.clone())
            .or_default()
            .push(term.value);
    }
    let means = values.into_iter();
    means.map(|(name, values)| (name, mean(&values))).collect()
}

/// Mean over groups of the mean of each group's best so many percent, by `"100"` ... `"10"`.
fn reward_top(rewards: &[Vec<f64>]) -> BTreeMap<String, f64> {
    let sorted: Vec<Vec<f64>> = rewards.iter().map(|group| best_first(group)).collect();
    let top = |percent| {
        let means: Vec<f64> = sorted
            .iter()
            .map(|group| mean(&group[..share(group.len(), percent)]))
            .collect();
        mean(&means)
    };
    TOP_PERCENT
        .into_iter()
        .map(|percent| (percent.to_string(), top(percent)))
        .collect()
}

fn best_first(group: &[f64]) -> Vec<f64> {
    let mut sorted = group.to_vec();
    sorted.sort_by(|a, b| b.total_cmp(a));
    sorted
}

/// At least one candidate of a group that has any.
fn share(len: usize, percent: usize) -> usize {
    (len * percent / 100).max(1).min(len)
}

fn all_equal(group: &[f64]) -> bool {
    group.windows(2).all(|pair| pair[0] == pair[1])
}

fn mean(values: &[f64]) -> f64 {
    Moments::of(values.iter().copied()).mean
}

/// `part / whole`, 0 of nothing.
pub(crate) fn ratio(part: usize, whole: usize) -> f64 {
    if whole == 0 {
        0.0
    } else {
        part as f64 / whole as f64
    }
}

#[cfg(test)]
mod tests {
    use retouch_proto::task::TermScore;

    use super::*;

    #[test]
    fn worked_example() {
        let rewards = [
            vec![0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0],
            vec![0.5; 10],
        ];
        let mut metrics = IterationMetrics::default();
        describe_rewards(&rewards, &mut metrics);
        let close = |a: f64, b: f64| assert!((a - b).abs() < 1e-12, "{a} is not {b}");
        close(metrics.reward_mean, (0.55 + 0.5) / 2.0);
        close(metrics.zero_std_ratio, 0.5);
        close(metrics.reward_std_mean, 0.0825_f64.sqrt() / 2.0);
        close(metrics.reward_top["100"], metrics.reward_mean);
        close(metrics.reward_top["50"], (0.8 + 0.5) / 2.0);
        close(metrics.reward_top["10"], (1.0 + 0.5) / 2.0);
        // Seven of ten: shares are rounded down.
        close(metrics.reward_top["75"], (0.7 + 0.5) / 2.0);
    }

    #[test]
    fn a_terms_mean_is_over_the_samples_that_it_has_scored() {
        let term = |name: &str, value| TermScore {
            name: name.into(),
            value,
            probabilities: [0.0; 6],
            entropy: 0.0,
        };
        let score = |terms| SampleScore { reward: 0.5, terms };
        let scores = [
            score(vec![term("edit", 0.25), term("watched", 1.0)]),
            score(vec![term("edit", 0.75)]),
        ];
        let means = term_means(scores.iter());
        assert_eq!(
            means.into_iter().collect::<Vec<_>>(),
            [("edit".to_owned(), 0.5), ("watched".to_owned(), 1.0)]
        );
    }

    #[test]
    fn no_groups_are_all_zero() {
        let mut metrics = IterationMetrics::default();
        describe_rewards(&[], &mut metrics);
        assert_eq!(metrics.reward_mean, 0.0);
        assert_eq!(metrics.reward_top["10"], 0.0);
    }
}
