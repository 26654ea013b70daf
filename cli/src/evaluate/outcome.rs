//! What evaluating one held-out pair gives, and what many of them add up to.

use std::collections::BTreeMap;

use image::RgbImage;
use retouch_tiny::bootstrap::{self, Estimate};

use crate::report::{Comparison, HeldOut, Triptych};

/// Decides the resamplings of every interval: the same outcomes give the same report.
const BOOTSTRAP_SEED: u64 = 0;
const ORACLE_MAX: f64 = retouch_tiny::oracle::SCORE_MAX;

/// One edit and its scores.
pub(crate) struct Scored {
    pub(crate) image: RgbImage,
    /// The weighted reward, 0..1.
    pub(crate) judge: f64,
    /// The score against the known target, 0..5, where there is one.
    pub(crate) oracle: Option<f64>,
}

/// A held-out pair edited by the base and by the adapter, from the same initial noise.
pub(crate) struct PairOutcome {
    pub(crate) prompt: String,
    /// The task kind, or the requirement where kinds are not known.
    pub(crate) task: String,
    pub(crate) source: RgbImage,
    pub(crate) before: Scored,
    pub(crate) after: Scored,
}

impl PairOutcome {
    pub(crate) fn triptych(&self) -> Triptych<'_> {
        Triptych {
            source: &self.source,
            before: &self.before.image,
            after: &self.after.image,
        }
    }

    /// Before, after and the scale's top: the oracle's where it is known, else the judge's.
    pub(crate) fn headline_scores(&self) -> (f64, f64, f64) {
        match (self.before.oracle, self.after.oracle) {
            (Some(before), Some(after)) => (before, after, ORACLE_MAX),
            _ => (self.before.judge, self.after.judge, 1.0),
        }
    }
}

/// Means, intervals and gains over all pairs.
pub(crate) fn summarise(outcomes: &[PairOutcome], sampling: String) -> HeldOut {
    let oracle: Option<Vec<(f64, f64)>> = outcomes
        .iter()
        .map(|o| Some((o.before.oracle?, o.after.oracle?)))
        .collect();
    let judge: Vec<(f64, f64)> = outcomes
        .iter()
        .map(|o| (o.before.judge, o.after.judge))
        .collect();
    let headline = oracle.as_ref().unwrap_or(&judge);
    HeldOut {
        pairs: outcomes.len(),
        gain_by_task: gain_by_task(outcomes, headline),
        oracle: oracle.as_deref().map(compare),
        judge: compare(&judge),
        sampling,
    }
}

fn gain_by_task(outcomes: &[PairOutcome], scores: &[(f64, f64)]) -> BTreeMap<String, Estimate> {
    let mut tasks: BTreeMap<String, Vec<(f64, f64)>> = BTreeMap::new();
    for (outcome, score) in outcomes.iter().zip(scores) {
        tasks.entry(outcome.task.clone()).or_default().push(*score);
    }
    tasks
        .into_iter()
        .map(|(task, scores)| (task, compare(&scores).gain))
        .collect()
}

fn compare(scores: &[(f64, f64)]) -> Comparison {
    let (before, after): (Vec<f64>, Vec<f64>) = scores.iter().copied().unzip();
    Comparison {
        before: bootstrap::mean(&before, BOOTSTRAP_SEED),
        after: bootstrap::mean(&after, BOOTSTRAP_SEED),
        gain: bootstrap::gain(&before, &after, BOOTSTRAP_SEED),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(task: &str, before: f64, after: f64, oracle: bool) -> PairOutcome {
        let scored = |judge: f64| Scored {
            image: RgbImage::new(1, 1),
            judge,
            oracle: oracle.then_some(judge * ORACLE_MAX),
        };
        PairOutcome {
            prompt: "remove it".to_owned(),
            task: task.to_owned(),
            source: RgbImage::new(1, 1),
            before: scored(before),
            after: scored(after),
        }
    }

    #[test]
    fn gains_are_paired_and_told_by_task() {
        let outcomes = [
            outcome("add", 0.2, 0.4, true),
            outcome("remove", 0.6, 0.6, true),
        ];
        let heldout = summarise(&outcomes, String::new());
        assert!((heldout.judge.gain.mean - 0.1).abs() < 1e-12);
        let oracle = heldout.oracle.expect("every pair has a target");
        assert!((oracle.gain.mean - 0.5).abs() < 1e-12);
        assert!((heldout.gain_by_task["add"].mean - 1.0).abs() < 1e-12);
        assert_eq!(heldout.gain_by_task["remove"].mean, 0.0);
    }

    #[test]
    fn without_targets_the_judge_is_the_headline() {
        let heldout = summarise(&[outcome("add", 0.2, 0.4, false)], String::new());
        assert!(heldout.oracle.is_none());
        assert!((heldout.gain_by_task["add"].mean - 0.2).abs() < 1e-12);
    }
}
