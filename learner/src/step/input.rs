use std::collections::BTreeSet;
use std::sync::Arc;

use burn::tensor::Tensor;
use retouch_models::editor::{Condition, Editor};
use retouch_models::lora::flat_len;
use retouch_proto::{GroupId, Iteration, RunConfig};

use super::StepError;
use crate::metrics::StepMetrics;
use crate::plan::{Plan, PlannedGroup};
use crate::state::LearnerState;

/// The input of one training iteration, beside the state.
#[derive(Clone, Copy, Debug)]
pub struct SealedIteration<'a> {
    /// The base model, on a device without autodiff.
    pub editor: &'a Editor,
    /// The run's settings.
    pub config: &'a RunConfig,
    /// The iteration's number.
    pub number: Iteration,
    /// The policy that the KL term measures from, as a flat adapter; `None` is the base model.
    pub reference: Option<&'a [f32]>,
    /// The kept groups in group-id order.
    pub groups: &'a [SealedGroup],
}

/// A group that passed the filter.
#[derive(Clone, Debug)]
pub struct SealedGroup {
    /// The group.
    pub group: GroupId,
    /// One per sample.
    pub advantages: Vec<f64>,
    /// The policy that made the samples.
    pub sampled_by: SampledBy,
    /// The samples; ranks whose shards have none of the group do without.
    pub data: Option<GroupData>,
}

/// The policy that made a group's samples (A6).
#[derive(Clone, Debug)]
pub enum SampledBy {
    /// The old policy of the state.
    Old,
    /// An earlier old policy, as a flat adapter.
    Earlier(Arc<[f32]>),
}

/// A group's samples.
#[derive(Clone, Debug)]
pub struct GroupData {
    /// What they were made from.
    pub condition: Condition,
    /// Clean latents, f32. [K, S, C]
    pub x0: Tensor<3>,
}

/// What comes out of a training iteration.
#[derive(Clone, Debug)]
pub struct StepOutput {
    /// The next state, the same on every rank.
    pub state: LearnerState,
    /// Diagnostics, the same on every rank but for the times.
    pub metrics: StepMetrics,
}

impl SealedIteration<'_> {
    pub(super) fn plan(&self) -> Plan {
        let planned = |group: &SealedGroup| PlannedGroup {
            index: group.group.index,
            samples: group.advantages.len(),
        };
        Plan {
            run_seed: self.config.seed,
            iteration: self.number,
            groups: self.groups.iter().map(planned).collect(),
            excluded: BTreeSet::new(),
            gradient_shards: self.config.learner.gradient_shards as usize,
            micro_batch_size: self.config.learner.micro_batch_size as usize,
            num_inference_steps: self.config.rollout.num_inference_steps as usize,
            timestep_fraction: self.config.learner.timestep_fraction,
        }
    }

    pub(super) fn check(&self, state: &LearnerState) -> Result<(), StepError> {
        self.groups.iter().try_for_each(SealedGroup::check)?;
        self.check_length("trained adapter", &state.theta)?;
        if let Some(reference) = self.reference {
            self.check_length("reference adapter", reference)?;
        }
        let mut sampling = self.groups.iter().map(|group| group.sampler(state));
        sampling.try_for_each(|flat| self.check_length("sampling adapter", flat))
    }

    fn check_length(&self, which: &'static str, flat: &[f32]) -> Result<(), StepError> {
        let expected = flat_len(&self.config.lora.adapter, self.editor.projections());
        if flat.len() == expected {
            return Ok(());
        }
        Err(StepError::AdapterLength {
            which,
            len: flat.len(),
            expected,
        })
    }
}

impl SealedGroup {
    /// The flat adapter of the policy that made the samples.
    pub(super) fn sampler<'a>(&'a self, state: &'a LearnerState) -> &'a [f32] {
        match &self.sampled_by {
            SampledBy::Old => &state.old,
            SampledBy::Earlier(flat) => flat,
        }
    }

    fn check(&self) -> Result<(), StepError> {
        let group = self.group;
        let advantages = self.advantages.len();
        if let Some(samples) = self.data.as_ref().map(|d| d.x0.dims()[0])
            && samples != advantages
        {
            return Err(StepError::SampleCount {
                group,
                samples,
                advantages,
            });
        }
        let broken = self.advantages.iter().position(|a| !a.is_finite());
        broken.map_or(Ok(()), |sample| {
            Err(StepError::Advantage {
                group,
                sample,
                value: self.advantages[sample],
            })
        })
    }
}
