//! One training iteration, from sealed groups to the next learner state.
//!
//! 1. The kept samples, in (group, sample) order, are cut into `gradient_shards`
//!    parts; this rank takes its own ([`plan`](crate::plan)).
//! 2. Each sample is noised at a random choice of the sampler's timesteps, and the
//!    loss's gradient is added up in its shard ([`gradient`](crate::gradient)).
//! 3. The shards of all ranks are added in a fixed tree and divided by the number
//!    of (sample, timestep) pairs ([`shards`](crate::shards)).
//! 4. One optimizer update follows ([`state`](crate::state)).

use std::collections::BTreeSet;
use std::fmt;
use std::ops::{ControlFlow, Range};
use std::sync::Arc;

use burn::tensor::Tensor;
use retouch_models::editor::{Condition, Editor};
use retouch_models::lora::{Checkpointing, LoraConfig};
use retouch_models::scheduler::ScheduleError;
use retouch_proto::RunConfig;
use retouch_proto::config::NotFinite;
use retouch_proto::ids::{GroupId, Iteration as IterationNumber};

use crate::adamw::AdamWConfig;
use crate::metrics::{StageTimes, StepMetrics, TermSums, timed};
use crate::nft::NftConfig;
use crate::plan::{self, PlanConfig, Sample};
use crate::rank::{self, Finding, Rank};
use crate::shards::{self, BoxError, Ledger, ShardReduce};
use crate::state::{LearnerState, UpdateConfig};

/// One sample in so many may be dropped for not being finite.
const DROPPED_MAX: usize = 10;

/// Samples that an iteration is made without.
pub(crate) type Excluded = BTreeSet<Sample>;

/// What a training iteration depends on beside its groups and the state.
#[derive(Clone, Debug, PartialEq)]
pub struct StepConfig {
    /// The loss.
    pub nft: NftConfig,
    /// The optimizer and the averages.
    pub update: UpdateConfig,
    /// The trained adapter.
    pub lora: LoraConfig,
    /// Parts in which the gradient is summed.
    pub gradient_shards: usize,
    /// Most (sample, timestep) pairs in one forward pass.
    pub micro_batch_size: usize,
    /// What is kept of a forward pass until it goes back.
    pub checkpointing: Checkpointing,
    /// Share of the sampler's timesteps that each sample is trained at.
    pub timestep_fraction: f64,
    /// Steps of the sampler that made the samples.
    pub num_inference_steps: usize,
    /// Guidance that the samples were made with.
    pub guidance_scale: f64,
    /// What becomes of a sample whose loss is not finite.
    pub not_finite: NotFinite,
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

/// The input of one training iteration.
#[derive(Clone, Copy, Debug)]
pub struct Iteration<'a> {
    /// The base model, on a device without autodiff.
    pub editor: &'a Editor,
    /// The method's settings.
    pub config: &'a StepConfig,
    /// The run's seed.
    pub run_seed: u64,
    /// The iteration's number.
    pub number: IterationNumber,
    /// The kept groups in group-id order.
    pub groups: &'a [SealedGroup],
}

/// What comes out of a training iteration.
#[derive(Clone, Debug)]
pub struct StepOutput {
    /// The next state, the same on every rank.
    pub state: LearnerState,
    /// Diagnostics, the same on every rank but for the times.
    pub metrics: StepMetrics,
}

/// How far this rank is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepProgress {
    /// Pairs done.
    pub done: usize,
    /// Pairs of this rank.
    pub total: usize,
}

/// Is told how far a rank is, and may answer `Break` to stop it.
pub type Observer<'a> = dyn FnMut(StepProgress) -> ControlFlow<()> + Send + 'a;

/// Why an iteration could not be made.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    /// The observer asked to stop.
    #[error("training iteration cancelled")]
    Cancelled,
    /// A group of this rank's shards came without its samples.
    #[error("group {0} belongs to a shard of this rank, but its samples are missing")]
    MissingData(GroupId),
    /// Samples and advantages do not fit together.
    #[error("group {group} has {samples} samples and {advantages} advantages")]
    SampleCount {
        /// The group.
        group: GroupId,
        /// Samples in x0.
        samples: usize,
        /// Advantages.
        advantages: usize,
    },
    /// An adapter does not fit the model.
    #[error("{which} has {len} values, the model's adapter has {expected}")]
    AdapterLength {
        /// Which adapter.
        which: &'static str,
        /// Its length.
        len: usize,
        /// The right length.
        expected: usize,
    },
    /// An advantage is NaN or infinite.
    #[error("advantage of sample {sample} of group {group} is {value}, expected a finite number")]
    Advantage {
        /// The group.
        group: GroupId,
        /// The sample in it.
        sample: usize,
        /// The advantage.
        value: f64,
    },
    /// The loss of a pair is NaN or infinite.
    #[error("{what} of sample {sample} of group {group} is not finite at timestep {timestep}")]
    NotFinite {
        /// The group.
        group: GroupId,
        /// The sample in it.
        sample: usize,
        /// Index of the timestep in the sampler's schedule.
        timestep: usize,
        /// What is not finite.
        what: Culprit,
    },
    /// The scheduler has no noise levels for the sampler's steps.
    #[error(transparent)]
    Schedule(#[from] ScheduleError),
    /// Every loss is finite, their gradient is not.
    #[error("gradient norm is {0}, expected a finite number")]
    GradientNotFinite(f64),
    /// The sum over ranks failed.
    #[error("all-reduce failed: {0}")]
    AllReduce(#[source] BoxError),
}

/// What was found not to be finite.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Culprit {
    /// The clean latent that the rollout made.
    CleanLatent,
    /// The policy loss, while the latent is finite.
    PolicyLoss,
    /// The distance from the base model, while the policy loss is finite.
    KlDivergence,
}

impl StepConfig {
    /// The settings of a run file.
    pub fn from_run(run: &RunConfig) -> Self {
        let RunConfig {
            learner,
            advantage,
            rollout,
            lora,
            ..
        } = run;
        Self {
            nft: NftConfig {
                beta: learner.nft_beta,
                kl_beta: learner.kl_beta,
                adv_clip_max: advantage.adv_clip_max,
                adv_mode: advantage.adv_mode,
            },
            update: UpdateConfig {
                adamw: AdamWConfig {
                    learning_rate: learner.learning_rate,
                    beta1: learner.adam_beta1,
                    beta2: learner.adam_beta2,
                    epsilon: learner.adam_epsilon,
                    weight_decay: learner.weight_decay,
                },
                warmup_steps: learner.warmup_iterations.into(),
                max_grad_norm: learner.max_grad_norm,
                old_policy: learner.old_policy,
                ema_decay_max: learner.ema_decay_max,
            },
            lora: lora.clone(),
            gradient_shards: learner.gradient_shards as usize,
            micro_batch_size: learner.micro_batch_size as usize,
            checkpointing: learner.activation_checkpointing,
            timestep_fraction: learner.timestep_fraction,
            num_inference_steps: rollout.num_inference_steps as usize,
            guidance_scale: rollout.guidance_scale,
            not_finite: learner.not_finite,
        }
    }
}

impl fmt::Display for Culprit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::CleanLatent => "clean latent",
            Self::PolicyLoss => "policy loss",
            Self::KlDivergence => "kl divergence",
        })
    }
}

/// Makes one training iteration; blocking, and busy on the device all the while.
///
/// The result depends on the input alone, not on ranks or threads. Without groups
/// the state stays as it is. `observe` is called before every batch.
///
/// What is wrong with a sample is found by the rank that has it and known to all. With
/// [`NotFinite::Drop`] they all begin again without it.
///
/// # Errors
///
/// See [`StepError`].
pub fn train_iteration(
    iteration: Iteration<'_>,
    state: &LearnerState,
    shards: &mut dyn ShardReduce,
    observe: &mut Observer<'_>,
) -> Result<StepOutput, StepError> {
    iteration.check()?;
    if iteration.groups.is_empty() {
        return Ok(StepOutput {
            state: state.clone(),
            metrics: StepMetrics::default(),
        });
    }
    let mut excluded = Excluded::new();
    loop {
        let result = attempt(iteration, state, shards, observe, &excluded);
        let Err(error @ StepError::NotFinite { .. }) = result else {
            return result;
        };
        let Some(sample) = iteration.droppable(&error, &excluded) else {
            return Err(error);
        };
        tracing::warn!(%error, "the iteration is made again without the sample");
        excluded.insert(sample);
    }
}

fn attempt(
    iteration: Iteration<'_>,
    state: &LearnerState,
    shards: &mut dyn ShardReduce,
    observe: &mut Observer<'_>,
    excluded: &Excluded,
) -> Result<StepOutput, StepError> {
    let config = iteration.config;
    let mut times = StageTimes::default();
    let owned = shards::owned(config.gradient_shards, shards.rank(), shards.world());
    let sums = Rank::new(iteration, state, excluded)?.shard_sums(owned, &mut times, observe)?;

    let reduced = timed(&mut times.all_reduce, || shards.all_reduce(sums));
    let mut gradient = reduced.map_err(StepError::AllReduce)?;
    let rows = iteration.ledger().split_off(&mut gradient);
    iteration.blame(&rows)?;

    let samples = iteration.group_sizes().iter().sum::<usize>() - excluded.len();
    let pairs = samples * iteration.timesteps();
    gradient.iter_mut().for_each(|g| *g /= pairs as f32);
    let mut next = state.clone();
    let grad_norm = timed(&mut times.optimizer, || {
        next.update(gradient, &config.update)
    });
    if !grad_norm.is_finite() {
        return Err(StepError::GradientNotFinite(grad_norm));
    }
    let metrics = StepMetrics {
        samples,
        grad_norm,
        eta: config.update.at(next.step).eta,
        times,
        ..TermSums::means(&rows, pairs, config.nft.kl_beta)
    };
    Ok(StepOutput {
        state: next,
        metrics,
    })
}

impl Iteration<'_> {
    /// The groups whose samples the shards need, by position.
    pub fn needed_groups(&self, shards: Range<usize>) -> Vec<usize> {
        plan::needed_groups(self.config.gradient_shards, shards, &self.group_sizes())
    }

    fn check(&self) -> Result<(), StepError> {
        self.groups.iter().try_for_each(SealedGroup::check)
    }

    pub(crate) fn group_sizes(&self) -> Vec<usize> {
        self.groups.iter().map(|g| g.advantages.len()).collect()
    }

    pub(crate) fn group_numbers(&self) -> Vec<u32> {
        self.groups.iter().map(|g| g.group.index).collect()
    }

    pub(crate) fn plan(&self) -> PlanConfig {
        PlanConfig {
            gradient_shards: self.config.gradient_shards,
            micro_batch_size: self.config.micro_batch_size,
            timestep_fraction: self.config.timestep_fraction,
            timesteps: self.config.num_inference_steps,
        }
    }

    pub(crate) fn ledger(&self) -> Ledger {
        Ledger {
            shards: self.config.gradient_shards,
            slots: rank::ROW_SLOTS,
        }
    }

    fn timesteps(&self) -> usize {
        let plan = self.plan();
        plan::training_timesteps(plan.timesteps, plan.timestep_fraction)
    }

    /// The sample that an error speaks of, if the iteration may go on without it. Where many are
    /// not finite, the samples are not what is wrong.
    fn droppable(&self, error: &StepError, excluded: &Excluded) -> Option<Sample> {
        let StepError::NotFinite { group, sample, .. } = error else {
            return None;
        };
        let samples: usize = self.group_sizes().iter().sum();
        let most = samples.div_ceil(DROPPED_MAX);
        let may = self.config.not_finite == NotFinite::Drop && excluded.len() < most;
        let position = self.groups.iter().position(|g| g.group == *group)?;
        may.then_some(Sample {
            group: position,
            index: *sample,
        })
    }

    /// The first thing that some shard found not to be finite.
    fn blame(&self, rows: &[Vec<f32>]) -> Result<(), StepError> {
        let Some(finding) = rows.iter().find_map(|row| Finding::from_row(row)) else {
            return Ok(());
        };
        let Finding {
            group,
            sample,
            timestep,
            what,
        } = finding;
        Err(StepError::NotFinite {
            group: self.groups[group].group,
            sample,
            timestep,
            what,
        })
    }
}

impl SealedGroup {
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
