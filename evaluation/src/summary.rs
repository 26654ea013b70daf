//! What the outcomes of many pairs add up to.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    bootstrap::{self, Estimate},
    outcome::{Outcome, Scored},
    verdict::Verdict,
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

/// What an oracle's score consists of, each 0..1 on the pairs that have the part; `None` where no pair has it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Parts {
    /// What was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub changed: Option<Comparison>,
    /// The objects that had to stay.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kept: Option<Comparison>,
    /// The background that had to stay.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub background: Option<Comparison>,
}

/// The held-out part of a report.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HeldOut {
    /// Number of (image, instruction) pairs.
    pub pairs: usize,
    /// Score against the known target, 0..5; absent for a dataset without known targets.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oracle: Option<Comparison>,
    /// What that score consists of.
    #[serde(flatten)]
    pub parts: Parts,
    /// The judge's weighted reward, 0..1.
    pub judge: Comparison,
    /// Oracle (or, without targets, judge) gain per task kind.
    pub gain_by_task: BTreeMap<String, Estimate>,
    /// What the oracle's score consists of, per task kind.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub parts_by_task: BTreeMap<String, Parts>,
    /// Steps and solver of the evaluation, in words.
    pub sampling: String,
}

impl HeldOut {
    /// Means, intervals and gains over all pairs.
    pub fn of(outcomes: &[Outcome], sampling: String) -> Self {
        let all: Vec<&Outcome> = outcomes.iter().collect();
        let tasks = by_task(outcomes);
        let oracle = |scored: &Scored| scored.oracle.map(Verdict::score);
        let judge = |scored: &Scored| Some(scored.judge);
        let known = scores(&all, oracle).len() == all.len();
        let gain = |outcomes: &[&Outcome]| {
            let scores = match known {
                true => scores(outcomes, oracle),
                false => scores(outcomes, judge),
            };
            Comparison::between(&scores).gain
        };
        let each = |(task, outcomes): (&String, &Vec<&Outcome>)| (task.clone(), gain(outcomes));
        let parts =
            |(task, outcomes): (&String, &Vec<&Outcome>)| (task.clone(), Parts::of(outcomes));
        Self {
            pairs: outcomes.len(),
            oracle: known.then(|| Comparison::between(&scores(&all, oracle))),
            parts: Parts::of(&all),
            judge: Comparison::between(&scores(&all, judge)),
            gain_by_task: tasks.iter().map(each).collect(),
            parts_by_task: tasks.iter().filter(|_| known).map(parts).collect(),
            sampling,
        }
    }
}

/// A score before and after, of the pairs that have it.
fn scores(outcomes: &[&Outcome], score: impl Fn(&Scored) -> Option<f64>) -> Vec<(f64, f64)> {
    let both = |outcome: &&Outcome| Some((score(&outcome.before)?, score(&outcome.after)?));
    outcomes.iter().filter_map(both).collect()
}

fn by_task(outcomes: &[Outcome]) -> BTreeMap<String, Vec<&Outcome>> {
    let mut tasks: BTreeMap<String, Vec<&Outcome>> = BTreeMap::new();
    for outcome in outcomes {
        tasks
            .entry(outcome.pair.task.clone())
            .or_default()
            .push(outcome);
    }
    tasks
}

impl Parts {
    fn of(outcomes: &[&Outcome]) -> Self {
        let of = |part: fn(Verdict) -> Option<f64>| {
            let scores = scores(outcomes, |scored| scored.oracle.and_then(part));
            (!scores.is_empty()).then(|| Comparison::between(&scores))
        };
        Self {
            changed: of(|verdict| Some(verdict.changed)),
            kept: of(|verdict| verdict.kept),
            background: of(|verdict| verdict.background),
        }
    }

    /// Those that there are, by name.
    pub fn named(&self) -> impl Iterator<Item = (&'static str, Comparison)> {
        let named = [
            ("changed", self.changed),
            ("kept", self.kept),
            ("background", self.background),
        ];
        named
            .into_iter()
            .filter_map(|(name, part)| Some((name, part?)))
    }
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
