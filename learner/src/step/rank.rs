use burn::tensor::{Device, Tensor};
use retouch_models::editor::Prepared;
use retouch_models::lora::LoraAdapter;
use retouch_models::memory;

use super::finding::Finding;
use super::{SealedGroup, SealedIteration, StepError};
use crate::metrics;
use crate::nft::NftConfig;
use crate::plan::{MicroBatch, Plan};
use crate::shards::Ledger;
use crate::state::LearnerState;

/// What all micro batches of this rank share.
pub(super) struct Rank<'a> {
    pub(super) iteration: SealedIteration<'a>,
    pub(super) plan: Plan,
    pub(super) nft: NftConfig,
    theta: &'a [f32],
    /// The policy that the KL term measures from; `None` is the base model.
    pub(super) reference: Option<LoraAdapter>,
    pub(super) groups: Vec<Option<RankGroup<'a>>>,
}

/// A group whose samples this rank has.
pub(super) struct RankGroup<'a> {
    /// [K, S, C]
    pub(super) x0: &'a Tensor<3>,
    pub(super) advantages: &'a [f64],
    /// What the network evaluations of all policies share.
    pub(super) condition: Prepared,
    /// The policy that made the samples; `None` if it is the trained one.
    pub(super) old: Option<LoraAdapter>,
    /// Most pairs that the frozen policies are asked about at once, unless a micro batch has more.
    pub(super) frozen_pairs_max: usize,
}

impl<'a> Rank<'a> {
    pub(super) fn new(iteration: SealedIteration<'a>, state: &'a LearnerState) -> Self {
        let mut this = Self {
            iteration,
            plan: iteration.plan(),
            nft: NftConfig::from_run(iteration.config),
            theta: &state.theta,
            reference: None,
            groups: Vec::new(),
        };
        let device = iteration.editor.device();
        let reference = iteration.reference.filter(|_| this.nft.kl_beta != 0.0);
        this.reference = reference.map(|flat| this.adapter(flat, device));
        this.groups = this.load_groups(state);
        this
    }

    /// Policies are on the device once, however many groups they sampled. Equal bits are one policy, also where they
    /// come from different places; of the trained one nothing is kept, since v_theta is v_old then.
    fn load_groups(&self, state: &'a LearnerState) -> Vec<Option<RankGroup<'a>>> {
        let SealedIteration { editor, config, .. } = self.iteration;
        let mut policies: Vec<(&[f32], Option<LoraAdapter>)> = vec![(&state.theta, None)];
        let mut load = |group: &'a SealedGroup| {
            let data = group.data.as_ref()?;
            let flat = group.sampler(state);
            let known = policies.iter().find(|(other, _)| same_bits(other, flat));
            let old = match known {
                Some((_, adapter)) => adapter.clone(),
                None => {
                    let adapter = Some(self.adapter(flat, editor.device()));
                    policies.push((flat, adapter.clone()));
                    adapter
                }
            };
            Some(RankGroup {
                x0: &data.x0,
                advantages: &group.advantages,
                condition: editor.prepare(&[&data.condition], config.rollout.guidance_scale),
                old,
                // On a CPU a larger batch gains nothing and leaves the caches.
                frozen_pairs_max: match memory::is_host(editor.device()) {
                    true => 1,
                    false => editor.samples_at_once(&data.condition),
                },
            })
        };
        self.iteration.groups.iter().map(&mut load).collect()
    }

    /// A group of this rank's shards.
    pub(super) fn group(&self, position: usize) -> Result<&RankGroup<'a>, StepError> {
        let group = self.groups[position].as_ref();
        group.ok_or_else(|| StepError::MissingData(self.iteration.groups[position].group))
    }

    /// Neighbouring micro batches of one group for which the frozen policies are asked at once. They keep no
    /// activations, so they can take more than a micro batch, and a GPU does more with that.
    pub(super) fn runs<'b>(
        &self,
        batches: &'b [MicroBatch],
    ) -> Result<Vec<&'b [MicroBatch]>, StepError> {
        let (mut runs, mut rest) = (Vec::new(), batches);
        while let Some(first) = rest.first() {
            let group = first[0].sample.group;
            let max = self.group(group)?.frozen_pairs_max;
            let mut pairs = 0;
            let fits = |batch: &&MicroBatch| {
                pairs += batch.len();
                batch[0].sample.group == group && pairs <= max
            };
            let len = rest.iter().take_while(fits).count().max(1);
            let (run, after) = rest.split_at(len);
            runs.push(run);
            rest = after;
        }
        Ok(runs)
    }

    /// The trained adapter as new leaves on the autodiff device; the frozen base stays on the plain one, so that it
    /// neither gets gradients nor keeps activations.
    pub(super) fn trained_adapter(&self) -> LoraAdapter {
        let device = self.iteration.editor.device().clone().autodiff();
        self.adapter(self.theta, &device)
    }

    /// Has a row for each shard: its sums of terms and its finding.
    pub(super) fn ledger(&self) -> Ledger {
        Ledger {
            shards: self.plan.gradient_shards,
            slots: metrics::TERMS + Finding::SLOTS,
        }
    }

    fn adapter(&self, flat: &[f32], device: &Device) -> LoraAdapter {
        let SealedIteration { editor, config, .. } = self.iteration;
        LoraAdapter::from_flat(&config.lora.adapter, editor.projections(), flat, device)
    }
}

/// Bits, not values: -0.0 and 0.0 may give different results.
fn same_bits(a: &[f32], b: &[f32]) -> bool {
    std::ptr::eq(a, b) || bytemuck::cast_slice::<_, u8>(a) == bytemuck::cast_slice::<_, u8>(b)
}
