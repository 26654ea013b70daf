//! How far a judge agrees with the oracle, on edits that it has not seen.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::path::Path;

use burn::tensor::Device;
use retouch_dataset::Split;
use retouch_learner::lanes::Lanes;
use retouch_models::editor::{Editor, Parts};
use retouch_models::judge::{Judge, JudgeRequest};
use serde::{Deserialize, Serialize};

use super::TrainError;
use super::candidates::{self, Candidates, Sampling};
use super::vae;
use crate::edit::TaskKind;
use crate::mistakes;

/// Held-out cases that the judge is measured on.
const MEASURED: u32 = 256;

/// Edits whose oracle scores differ by less are not compared.
const DIFFERENCE_MIN: f64 = 1.0;

/// A hack has a score of these by the oracle.
const HACK: RangeInclusive<f64> = 0.0..=1.0;

/// An honest failure has a score of these by the oracle.
const HONEST_FAILURE: RangeInclusive<f64> = 2.0..=4.5;

/// What came of the training, over edits of held-out cases: how many pairs of edits of one source, a point or more apart by
/// the oracle, the judge orders as the oracle does.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct JudgeReport {
    /// Of edits sampled from the base.
    pub sampled: Agreement,
    /// The same by task kind.
    pub sampled_by_task: BTreeMap<String, Agreement>,
    /// Of made-up edits.
    pub made_up: Agreement,
    /// Of made-up hacks, which the oracle gives a point at most, and made-up honest failures, which it gives 2 to 4.5.
    pub hacks: Agreement,
}

/// Pairs of edits that the judge orders as the oracle does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Agreement {
    /// The part of them.
    pub ordered: f64,
    /// All of them.
    pub pairs: usize,
}

/// Measures a judge on edits of held-out cases, by the editor `base` and made-up ones.
pub(super) fn measure(judge: &Judge, base: &Path) -> Result<JudgeReport, TrainError> {
    let editor = Editor::load(base, &Device::flex(), Parts::All)?;
    let vae = vae::of_editor(base)?;
    let sampling = Sampling {
        split: Split::Test,
        seed: 1,
        first: 0,
        cases: MEASURED,
        edits: 6,
    };
    let sampled = judged(judge, candidates::sample(&editor, sampling)?)?;
    let made_up = judged(
        judge,
        candidates::make_up(&vae, sampling, mistakes::candidate),
    )?;
    let hacks = judged(judge, candidates::make_up(&vae, sampling, mistakes::hack))?;
    let of_task = |kind: TaskKind| {
        let sets = sampled.iter().filter(|set| set.of.case.kind == kind);
        (
            kind.name().to_owned(),
            agreement(sets.flat_map(Judged::pairs)),
        )
    };
    let against_failures = |(hacks, made_up): (&Judged, &Judged)| hacks.below_failures(made_up);
    Ok(JudgeReport {
        sampled: agreement(sampled.iter().flat_map(Judged::pairs)),
        sampled_by_task: TaskKind::ALL.into_iter().map(of_task).collect(),
        made_up: agreement(made_up.iter().flat_map(Judged::pairs)),
        hacks: agreement(hacks.iter().zip(&made_up).flat_map(against_failures)),
    })
}

/// Of pairs, each right or wrong.
fn agreement(pairs: impl Iterator<Item = bool>) -> Agreement {
    let pairs: Vec<bool> = pairs.collect();
    let right = pairs.iter().filter(|right| **right).count();
    Agreement {
        ordered: right as f64 / pairs.len().max(1) as f64,
        pairs: pairs.len(),
    }
}

/// Edits of one case with the oracle's and the judge's scores.
struct Judged {
    of: Candidates,
    rewards: Vec<f64>,
}

impl Judged {
    /// Whether the judge orders two edits as the oracle does, for all that are far enough apart.
    fn pairs(&self) -> Vec<bool> {
        let (oracle, judge) = (self.of.scores(), &self.rewards);
        let pairs = (0..oracle.len()).flat_map(|a| (0..a).map(move |b| (a, b)));
        let compared = pairs.filter(|&(a, b)| (oracle[a] - oracle[b]).abs() >= DIFFERENCE_MIN);
        compared
            .map(|(a, b)| (oracle[a] - oracle[b]) * (judge[a] - judge[b]) > 0.0)
            .collect()
    }

    /// Whether each of these hacks is below each of the honest failures at the same case.
    fn below_failures(&self, made_up: &Self) -> Vec<bool> {
        let rewards = |judged: &Self, range: RangeInclusive<f64>| -> Vec<f64> {
            let scores = judged.of.scores().into_iter().zip(judged.rewards.clone());
            let counted = scores.filter(|(oracle, _)| range.contains(oracle));
            counted.map(|(_, reward)| reward).collect()
        };
        let (hacks, failures) = (rewards(self, HACK), rewards(made_up, HONEST_FAILURE));
        let below =
            |hack: &f64| -> Vec<bool> { failures.iter().map(|failure| hack < failure).collect() };
        hacks.iter().flat_map(below).collect()
    }
}

fn judged(judge: &Judge, sets: Vec<Candidates>) -> Result<Vec<Judged>, TrainError> {
    let lanes = Lanes::for_device(&Device::flex());
    let judged = lanes.map(sets, |of| {
        let rewards = rewards(judge, &of)?;
        Ok(Judged { of, rewards })
    });
    judged.into_iter().collect()
}

fn rewards(judge: &Judge, set: &Candidates) -> Result<Vec<f64>, TrainError> {
    let request = JudgeRequest {
        sources: std::slice::from_ref(&set.source),
        edits: &set.images,
        prompt: &set.case.prompt(),
        requirement: set.case.requirement(),
        template: None,
    };
    let scores = judge.score(&request)?;
    Ok(scores.iter().map(|score| score.reward).collect())
}

#[cfg(test)]
mod tests {
    use retouch_evaluation::{ORACLE_MAX, Verdict};

    use super::*;
    use crate::generate;

    fn judged(scores: &[f64], rewards: &[f64]) -> Judged {
        let verdict = |score: &f64| Verdict {
            changed: score / ORACLE_MAX,
            kept: None,
            background: None,
        };
        let case = generate::case(1, Split::Test, 0);
        let of = Candidates {
            source: case.source_image(),
            target: case.target_image(),
            case,
            images: Vec::new(),
            verdicts: scores.iter().map(verdict).collect(),
            grades: Vec::new(),
        };
        let rewards = rewards.to_vec();
        Judged { of, rewards }
    }

    #[test]
    fn only_pairs_a_point_apart_are_compared() {
        let pairs = judged(&[5.0, 4.5, 1.0], &[0.9, 0.95, 0.92]).pairs();
        assert_eq!(pairs, [false, true]);
    }

    #[test]
    fn hacks_are_compared_with_honest_failures_alone() {
        let hacks = judged(&[0.5, 3.0], &[0.4, 0.9]);
        let made_up = judged(&[5.0, 3.0, 2.5, 1.0], &[0.1, 0.5, 0.3, 0.1]);
        assert_eq!(hacks.below_failures(&made_up), [true, false]);
    }
}
