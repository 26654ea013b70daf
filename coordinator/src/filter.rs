//! The low-variance group filter: which groups are worth training on.

use retouch_proto::config::{FilterConfig, FilterRule};

use crate::advantage::Moments;

/// Which of these groups to keep, one answer per group.
pub fn keep(rewards: &[Vec<f64>], filter: &FilterConfig) -> Vec<bool> {
    rewards.iter().map(|group| keeps(group, filter)).collect()
}

/// Whether to keep a group with these rewards.
pub fn keeps(rewards: &[f64], filter: &FilterConfig) -> bool {
    let Moments { mean, std } = Moments::of(rewards.iter().copied());
    match filter.rule {
        FilterRule::Paper => !is_solved(rewards, filter),
        FilterRule::Strict => std > filter.tau_std && mean < filter.tau_mean,
        FilterRule::None => true,
    }
}

/// The paper's rule: good and all alike, so that the policy has nothing left to learn from it.
/// Pairs that meet it go on the ban list, whatever the filter's rule.
pub fn is_solved(rewards: &[f64], filter: &FilterConfig) -> bool {
    let Moments { mean, std } = Moments::of(rewards.iter().copied());
    mean > filter.tau_mean && std < filter.tau_std
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filter(rule: FilterRule) -> FilterConfig {
        FilterConfig {
            rule,
            ..FilterConfig::default()
        }
    }

    /// Means and deviations on both sides of both thresholds.
    const GROUPS: [[f64; 2]; 4] = [
        [0.98, 0.99], // good, alike
        [0.82, 1.00], // good, varied
        [0.50, 0.51], // middling, alike
        [0.30, 0.70], // middling, varied
    ];

    fn kept(rule: FilterRule) -> Vec<bool> {
        keep(&GROUPS.map(Vec::from), &filter(rule))
    }

    #[test]
    fn rules_differ_where_paper_and_code_do() {
        assert_eq!(kept(FilterRule::Paper), [false, true, true, true]);
        assert_eq!(kept(FilterRule::Strict), [false, false, false, true]);
        assert_eq!(kept(FilterRule::None), [true, true, true, true]);
    }

    #[test]
    fn thresholds_themselves_are_kept_by_paper_and_dropped_by_strict() {
        // Mean exactly 0.75 and deviation exactly 0.25.
        let exact = |rule| FilterConfig {
            rule,
            tau_mean: 0.75,
            tau_std: 0.25,
            ..filter(rule)
        };
        assert!(keeps(&[0.5, 1.0], &exact(FilterRule::Paper)));
        assert!(!keeps(&[0.5, 1.0], &exact(FilterRule::Strict)));
    }
}
