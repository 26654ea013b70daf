//! What one rank does in an iteration: the gradient sums of its shards.

use std::ops::Range;
use std::sync::Mutex;

use burn::tensor::{Device, Int, Tensor, TensorData};
use retouch_models::editor::Prepared;
use retouch_models::lora::{LoraAdapter, LoraGradient, Trained, flat_len};
use retouch_models::noise;

use crate::gradient::{self, PairBatch, Policies, Velocity};
use crate::lanes::Lanes;
use crate::metrics::{PairTerms, StageTimes, TermSums, timed};
use crate::plan::{self, Draws, MicroBatch};
use crate::state::LearnerState;
use crate::step::{
    Culprit, Excluded, GroupData, Iteration, Observer, SampledBy, SealedGroup, StepError,
    StepProgress,
};

/// Values that each shard reports beside its gradient.
pub(crate) const ROW_SLOTS: usize = TermSums::SLOTS + Finding::SLOTS;

/// One rank at work on one iteration.
pub(crate) struct Rank<'a> {
    iteration: Iteration<'a>,
    group_sizes: Vec<usize>,
    group_numbers: Vec<u32>,
    theta: &'a [f32],
    /// Per group; `None` where the samples are the trained policy's own.
    samplers: Vec<Option<LoraAdapter>>,
    /// Per group of this rank, what its forward passes share.
    conditions: Vec<Option<Prepared>>,
    excluded: &'a Excluded,
}

/// Asks whether to go on, before some more pairs are done.
type Advance<'a> = dyn Fn(usize) -> Result<(), StepError> + Sync + 'a;

impl<'a> Rank<'a> {
    pub(crate) fn new(
        iteration: Iteration<'a>,
        state: &'a LearnerState,
        excluded: &'a Excluded,
    ) -> Result<Self, StepError> {
        iteration.check_adapter("trained adapter", &state.theta)?;
        let guidance = iteration.config.guidance_scale;
        let prepare = |group: &SealedGroup| {
            let data = group.data.as_ref()?;
            Some(iteration.editor.prepare(&[&data.condition], guidance))
        };
        Ok(Self {
            group_sizes: iteration.group_sizes(),
            group_numbers: iteration.group_numbers(),
            theta: &state.theta,
            samplers: iteration.samplers(state)?,
            conditions: iteration.groups.iter().map(prepare).collect(),
            excluded,
            iteration,
        })
    }

    /// The sums of the shards `owned`, each with its row of the ledger at the end.
    pub(crate) fn shard_sums(
        &self,
        owned: Range<usize>,
        times: &mut StageTimes,
        observe: &mut Observer<'_>,
    ) -> Result<Vec<Vec<f32>>, StepError> {
        let (plan, draws) = (self.iteration.plan(), self.draws());
        let batches = |shard| {
            let mut batches = plan::shard_batches(&plan, shard, &self.group_sizes, &draws);
            for batch in &mut batches {
                batch.retain(|pair| !self.excluded.contains(&pair.sample));
            }
            batches.retain(|batch| !batch.is_empty());
            batches
        };
        let work: Vec<_> = owned.map(|shard| (shard, batches(shard))).collect();
        let total = work
            .iter()
            .flat_map(|(_, batches)| batches)
            .map(Vec::len)
            .sum();

        let progress = Mutex::new((0, observe));
        let advance = |pairs| {
            let (done, observe) = &mut *progress.lock().expect("a panic ends all lanes");
            let answer = observe(StepProgress { done: *done, total });
            *done += pairs;
            answer
                .is_continue()
                .then_some(())
                .ok_or(StepError::Cancelled)
        };
        let lanes = Lanes::for_device(self.iteration.editor.device());
        let results = lanes.map_with(
            work,
            || self.lane(),
            |lane, (shard, batches)| lane.shard_sum(shard, &batches, &advance),
        );
        let results = results.into_iter().collect::<Result<Vec<_>, _>>()?;
        let (sums, lane_times): (Vec<_>, Vec<_>) = results.into_iter().unzip();
        times.add_lanes(&lane_times, lanes.count().min(sums.len()));
        Ok(sums)
    }

    /// Lanes have their own leaves: graphs that share none can go back side by side.
    fn lane(&self) -> Lane<'_> {
        let device = self.iteration.editor.device().clone().autodiff();
        Lane {
            rank: self,
            theta: self.iteration.adapter(self.theta, &device),
        }
    }

    fn data(&self, group: usize) -> Result<(&GroupData, &Prepared), StepError> {
        let sealed = &self.iteration.groups[group];
        let data = sealed.data.as_ref().zip(self.conditions[group].as_ref());
        data.ok_or(StepError::MissingData(sealed.group))
    }

    fn draws(&self) -> Draws<'_> {
        Draws {
            run_seed: self.iteration.run_seed,
            iteration: self.iteration.number.0,
            group_numbers: &self.group_numbers,
        }
    }
}

impl Iteration<'_> {
    fn check_adapter(&self, which: &'static str, flat: &[f32]) -> Result<(), StepError> {
        let expected = flat_len(&self.config.lora, self.editor.projections());
        if flat.len() == expected {
            return Ok(());
        }
        Err(StepError::AdapterLength {
            which,
            len: flat.len(),
            expected,
        })
    }

    /// Per group the policy that sampled it, each on the device once; `None` for the trained one.
    fn samplers(&self, state: &LearnerState) -> Result<Vec<Option<LoraAdapter>>, StepError> {
        let mut samplers: Vec<(&[f32], Option<LoraAdapter>)> = Vec::new();
        for group in self.groups {
            let flat = match &group.sampled_by {
                SampledBy::Old => &state.old[..],
                SampledBy::Earlier(flat) => flat,
            };
            self.check_adapter("sampling adapter", flat)?;
            let known = samplers.iter().find(|(other, _)| same_bits(other, flat));
            let adapter = match known {
                Some((_, adapter)) => adapter.clone(),
                None if same_bits(flat, &state.theta) => None,
                None => Some(self.adapter(flat, self.editor.device())),
            };
            samplers.push((flat, adapter));
        }
        Ok(samplers.into_iter().map(|(_, adapter)| adapter).collect())
    }

    fn adapter(&self, flat: &[f32], device: &Device) -> LoraAdapter {
        LoraAdapter::from_flat(&self.config.lora, self.editor.projections(), flat, device)
    }
}

/// One lane of a rank, with the trained adapter as its own leaves.
struct Lane<'r> {
    rank: &'r Rank<'r>,
    theta: LoraAdapter,
}

impl<'r> Lane<'r> {
    /// The summed gradient of a shard with its row of the ledger. A pair that is not
    /// finite ends the shard: the ledger tells every rank.
    fn shard_sum(
        &self,
        shard: usize,
        batches: &[MicroBatch],
        advance: &Advance<'_>,
    ) -> Result<(Vec<f32>, StageTimes), StepError> {
        let mut sum = LoraGradient::zero(&self.theta);
        let mut sums = TermSums::default();
        let mut times = StageTimes::default();
        let mut finding = None;
        for batch in batches {
            advance(batch.len())?;
            let (part, terms) = self.batch_gradient(batch, &mut times)?;
            finding = self.find(batch, &terms)?;
            if finding.is_some() {
                break;
            }
            sum.add(part);
            sums.add(&terms);
        }
        let mut gradient = timed(&mut times.backward, || sum.into_flat());
        let row = [&sums.row()[..], &Finding::row(finding)[..]].concat();
        self.rank
            .iteration
            .ledger()
            .append(&mut gradient, shard, &row);
        Ok((gradient, times))
    }

    /// Noises a batch, asks the three policies, and goes back through the trained one.
    fn batch_gradient(
        &self,
        batch: &MicroBatch,
        times: &mut StageTimes,
    ) -> Result<(LoraGradient<'_>, PairTerms), StepError> {
        let Iteration { editor, config, .. } = self.rank.iteration;
        let group = batch[0].sample.group;
        let (_, condition) = self.rank.data(group)?;
        let frozen = |adapter: Option<&'r LoraAdapter>| {
            move |x_t: Tensor<3>, t: Tensor<1>| editor.velocity_of(x_t, t, condition, adapter)
        };
        let trained = Trained {
            adapter: &self.theta,
            checkpointing: config.checkpointing,
        };
        let theta = move |x_t: Tensor<3>, t: Tensor<1>| {
            editor.tracked_velocity_of(x_t, t, condition, trained)
        };
        let old = self.rank.samplers[group].as_ref();
        let old = old.map(|adapter| frozen(Some(adapter)));
        let policies = Policies {
            theta: &theta,
            old: old.as_ref().map(|old| old as &Velocity<'_>),
            reference: &frozen(None),
        };
        let pairs = timed(&mut times.prepare, || self.pair_batch(batch))?;
        let result = gradient::pair_gradient(policies, &pairs, &config.nft, times);
        Ok((result.gradient, PairTerms::read(result.loss.terms)))
    }

    fn pair_batch(&self, batch: &MicroBatch) -> Result<PairBatch, StepError> {
        let Iteration {
            editor,
            config,
            groups,
            ..
        } = self.rank.iteration;
        let group = batch[0].sample.group;
        let (GroupData { x0, .. }, _) = self.rank.data(group)?;
        let ([_, tokens, channels], device) = (x0.dims(), x0.device());
        let rows: Vec<i64> = batch.iter().map(|pair| pair.sample.index as i64).collect();
        let rows = Tensor::<1, Int>::from_data(TensorData::new(rows, [batch.len()]), &device);
        let draws = self.rank.draws();
        let noise: Vec<f32> = batch
            .iter()
            .flat_map(|pair| noise::normal_values(draws.noise_seed(pair), tokens * channels))
            .collect();
        let sigmas = editor
            .scheduler
            .sigmas(config.num_inference_steps, tokens)?;
        let advantages = &groups[group].advantages;
        Ok(PairBatch {
            x0: x0.clone().select(0, rows),
            noise: Tensor::from_data(
                TensorData::new(noise, [batch.len(), tokens, channels]),
                &device,
            ),
            t: batch.iter().map(|pair| sigmas[pair.timestep]).collect(),
            advantages: batch
                .iter()
                .map(|pair| advantages[pair.sample.index])
                .collect(),
            valid: vec![true; batch.len()],
        })
    }

    /// The first pair of a batch whose loss is not finite.
    fn find(&self, batch: &MicroBatch, terms: &PairTerms) -> Result<Option<Finding>, StepError> {
        let finite = |i: usize| terms.policy_loss[i].is_finite() && terms.kl[i].is_finite();
        let Some(i) = (0..batch.len()).find(|&i| !finite(i)) else {
            return Ok(None);
        };
        let sample = batch[i].sample;
        let (GroupData { x0, .. }, _) = self.rank.data(sample.group)?;
        let latent = x0.clone().narrow(0, sample.index, 1);
        let what = if !latent.is_finite().all().into_scalar::<bool>() {
            Culprit::CleanLatent
        } else if !terms.policy_loss[i].is_finite() {
            Culprit::PolicyLoss
        } else {
            Culprit::KlDivergence
        };
        let timestep = batch[i].timestep;
        Ok(Some(Finding {
            group: sample.group,
            sample: sample.index,
            timestep,
            what,
        }))
    }
}

fn same_bits(a: &[f32], b: &[f32]) -> bool {
    std::ptr::eq(a, b) || bytemuck::cast_slice::<_, u8>(a) == bytemuck::cast_slice::<_, u8>(b)
}

/// A pair whose loss is not finite, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Finding {
    /// Position of the group.
    pub(crate) group: usize,
    /// The sample in it.
    pub(crate) sample: usize,
    /// Index of the timestep.
    pub(crate) timestep: usize,
    /// What is not finite.
    pub(crate) what: Culprit,
}

impl Finding {
    const SLOTS: usize = 4;

    /// As numbers that the ledger carries exactly: a code, 0 for nothing found, and
    /// three indices.
    fn row(finding: Option<Self>) -> [f32; Self::SLOTS] {
        finding.map_or([0.0; Self::SLOTS], |f| {
            let code = match f.what {
                Culprit::CleanLatent => 1,
                Culprit::PolicyLoss => 2,
                Culprit::KlDivergence => 3,
            };
            [code, f.group, f.sample, f.timestep].map(|n| n as f32)
        })
    }

    /// Reads the end of a shard's row.
    pub(crate) fn from_row(row: &[f32]) -> Option<Self> {
        let numbers = &row[TermSums::SLOTS..];
        let what = match numbers[0] as usize {
            0 => return None,
            1 => Culprit::CleanLatent,
            2 => Culprit::PolicyLoss,
            _ => Culprit::KlDivergence,
        };
        let [group, sample, timestep] = [1, 2, 3].map(|i| numbers[i] as usize);
        Some(Self {
            group,
            sample,
            timestep,
            what,
        })
    }
}
