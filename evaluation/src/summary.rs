//! What the outcomes of many pairs add up to.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    bootstrap::{self, Estimate},
    outcome::Outcome,
};

/// Decides the resamplings of every interval: the same outcomes give the same summary.
const BOOTSTRAP_SEED: u64 = 0;

/// One measure on the held-out pairs; `gain` is after minus before, paired by held-out pair.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    /// The base's mean.
    pub before: Estimate,
    /// The adapter's.
    pub after: Estimate,
    /// The mean of the differences.
    pub gain: Estimate,
}

/// The held-out part of a report.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HeldOut {
    /// Number of (image, instruction) pairs.
    pub pairs: usize,
    /// Score against the known target, 0..5; absent for a dataset without known targets.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oracle: Option<Comparison>,
    /// The judge's weighted reward, 0..1.
    pub judge: Comparison,
    /// Oracle (or, without targets, judge) gain per task kind.
    pub gain_by_task: BTreeMap<String, Estimate>,
    /// Steps and solver of the evaluation, in words.
    pub sampling: String,
}

impl HeldOut {
    /// Means, intervals and gains over all pairs.
    pub fn of(outcomes: &[Outcome], sampling: String) -> Self {
        let oracle: Option<Vec<(f64, f64)>> = outcomes
            .iter()
            .map(|o| Some((o.before.oracle?, o.after.oracle?)))
            .collect();
        let judge: Vec<(f64, f64)> = outcomes
            .iter()
            .map(|o| (o.before.judge, o.after.judge))
            .collect();
        let headline = oracle.as_ref().unwrap_or(&judge);
        Self {
            pairs: outcomes.len(),
            gain_by_task: gain_by_task(outcomes, headline),
            oracle: oracle.as_deref().map(Comparison::between),
            judge: Comparison::between(&judge),
            sampling,
        }
    }
}

fn gain_by_task(outcomes: &[Outcome], scores: &[(f64, f64)]) -> BTreeMap<String, Estimate> {
    let mut tasks: BTreeMap<String, Vec<(f64, f64)>> = BTreeMap::new();
    for (outcome, score) in outcomes.iter().zip(scores) {
        tasks
            .entry(outcome.pair.task.clone())
            .or_default()
            .push(*score);
    }
    tasks
        .into_iter()
        .map(|(task, scores)| (task, Comparison::between(&scores).gain))
        .collect()
}

impl Comparison {
    /// Of pairs' scores before and after.
    fn between(scores: &[(f64, f64)]) -> Self {
        let (before, after): (Vec<f64>, Vec<f64>) = scores.iter().copied().unzip();
        Self {
            before: bootstrap::mean(&before, BOOTSTRAP_SEED),
            after: bootstrap::mean(&after, BOOTSTRAP_SEED),
            gain: bootstrap::gain(&before, &after, BOOTSTRAP_SEED),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outcome::tests::outcome;

    #[test]
    fn gains_are_paired_and_told_by_task() {
        let outcomes = [
            outcome("add", 0.2, 0.4, true),
            outcome("remove", 0.6, 0.6, true),
        ];
        let heldout = HeldOut::of(&outcomes, String::new());
        assert!((heldout.judge.gain.mean - 0.1).abs() < 1e-12);
        let oracle = heldout.oracle.expect("every pair has a target");
        assert!((oracle.gain.mean - 0.5).abs() < 1e-12);
        assert!((heldout.gain_by_task["add"].mean - 1.0).abs() < 1e-12);
        assert_eq!(heldout.gain_by_task["remove"].mean, 0.0);
    }

    #[test]
    fn without_targets_the_judge_is_the_headline() {
        let heldout = HeldOut::of(&[outcome("add", 0.2, 0.4, false)], String::new());
        assert!(heldout.oracle.is_none());
        assert!((heldout.gain_by_task["add"].mean - 0.2).abs() < 1e-12);
    }
}
