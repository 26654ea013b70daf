use std::fmt;

use burn::tensor::Tensor;

use super::{PairGradient, SealedGroup, StepError};
use crate::metrics::Terms;
use crate::plan::{Pair, Sample};

/// What was found not to be finite.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Culprit {
    /// The clean latent that the rollout made.
    CleanLatent,
    /// The policy loss, while the latent is finite.
    PolicyLoss,
    /// The distance from the base model, while the policy loss is finite.
    KlDivergence,
    /// The gradient, while the loss is finite.
    Gradient,
}

impl Culprit {
    /// In the order of their codes in a ledger, which start at 1.
    const ALL: [Self; 4] = [
        Self::CleanLatent,
        Self::PolicyLoss,
        Self::KlDivergence,
        Self::Gradient,
    ];
}

impl fmt::Display for Culprit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::CleanLatent => "clean latent",
            Self::PolicyLoss => "policy loss",
            Self::KlDivergence => "kl divergence",
            Self::Gradient => "gradient",
        })
    }
}

/// A pair that is not finite, and what about it is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Finding {
    pub(super) sample: Sample,
    timestep: usize,
    what: Culprit,
}

impl Finding {
    /// Values of a finding in a shard's row of the ledger.
    pub(super) const SLOTS: usize = 4;

    /// What is not finite about a micro batch, if anything is.
    ///
    /// A loss is one pair's own. A gradient is the whole batch's: the pair is found by halving the batch, for which
    /// `gradient_is_finite` computes parts of it again, all in all fewer pairs than the batch has.
    pub(super) fn of(
        batch: &[Pair],
        x0: &Tensor<3>,
        found: &PairGradient<'_>,
        gradient_is_finite: impl FnMut(&[Pair]) -> Result<bool, StepError>,
    ) -> Result<Option<Self>, StepError> {
        let Terms {
            policy_loss, kl, ..
        } = &found.terms;
        let finite = |i: usize| policy_loss[i].is_finite() && kl[i].is_finite();
        let (pair, what) = match (0..batch.len()).find(|&i| !finite(i)) {
            None if found.is_finite => return Ok(None),
            None => (halve(batch, gradient_is_finite)?, Culprit::Gradient),
            Some(i) if !is_finite(x0, batch[i].sample) => (batch[i], Culprit::CleanLatent),
            Some(i) if !policy_loss[i].is_finite() => (batch[i], Culprit::PolicyLoss),
            Some(i) => (batch[i], Culprit::KlDivergence),
        };
        Ok(Some(Self {
            sample: pair.sample,
            timestep: pair.timestep,
            what,
        }))
    }

    /// As numbers that the ledger carries exactly: a code, 0 for nothing found, and three indices.
    pub(super) fn row(finding: Option<Self>) -> [f32; Self::SLOTS] {
        finding.map_or([0.0; Self::SLOTS], |found| {
            let code = Culprit::ALL.iter().position(|what| *what == found.what);
            let code = code.map_or(0, |code| code + 1);
            let Sample { group, index } = found.sample;
            [code, group, index, found.timestep].map(|n| n as f32)
        })
    }

    /// The first finding in the rows of all shards, each of which ends with one.
    pub(super) fn first(rows: &[Vec<f32>]) -> Option<Self> {
        rows.iter().find_map(|row| {
            let numbers = &row[row.len() - Self::SLOTS..];
            let [code, group, index, timestep] = [0, 1, 2, 3].map(|i| numbers[i] as usize);
            Some(Self {
                sample: Sample { group, index },
                timestep,
                what: *Culprit::ALL.get(code.checked_sub(1)?)?,
            })
        })
    }

    pub(super) fn error(&self, groups: &[SealedGroup]) -> StepError {
        StepError::NotFinite {
            group: groups[self.sample.group].group,
            sample: self.sample.index,
            timestep: self.timestep,
            what: self.what,
        }
    }
}

/// The pair whose gradient is not finite, among some whose sum is not.
fn halve(
    mut pairs: &[Pair],
    mut is_finite: impl FnMut(&[Pair]) -> Result<bool, StepError>,
) -> Result<Pair, StepError> {
    while let (left @ [_, ..], right) = pairs.split_at(pairs.len() / 2) {
        // One half has it: where the left one is finite, the right one need not be computed. If both are and only
        // their sum is not, a sample of the right half is as good a choice as any.
        pairs = if is_finite(left)? { right } else { left };
    }
    Ok(pairs[0])
}

fn is_finite(x0: &Tensor<3>, sample: Sample) -> bool {
    let latent = x0.clone().narrow(0, sample.index, 1);
    latent.is_finite().all().into_scalar::<bool>()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(index: usize) -> Pair {
        Pair {
            sample: Sample { group: 0, index },
            draw: 0,
            timestep: index + 10,
        }
    }

    #[test]
    fn halving_finds_the_pair_with_less_work_than_the_batch_was() {
        for count in 1..20 {
            let batch: Vec<Pair> = (0..count).map(pair).collect();
            for broken in &batch {
                let mut computed = 0;
                let is_finite = |part: &[Pair]| {
                    computed += part.len();
                    Ok(!part.contains(broken))
                };
                assert_eq!(halve(&batch, is_finite).unwrap(), *broken);
                assert!(computed < count, "{computed} of {count}");
            }
        }
    }

    #[test]
    fn findings_survive_the_ledger_and_the_first_shard_comes_first() {
        let nothing = [&[7.0][..], &Finding::row(None)].concat();
        assert_eq!(Finding::first(std::slice::from_ref(&nothing)), None);
        for what in Culprit::ALL {
            let found = Finding {
                sample: Sample { group: 3, index: 5 },
                timestep: 2,
                what,
            };
            let later = Finding {
                timestep: 9,
                ..found
            };
            let row = |finding| [&[0.5][..], &Finding::row(Some(finding))].concat();
            let rows = [nothing.clone(), row(found), row(later)];
            assert_eq!(Finding::first(&rows), Some(found));
        }
    }
}
