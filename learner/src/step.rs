//! One training iteration, from sealed groups to the next learner state: DiffusionNFT (arXiv 2509.16117) with a
//! judge's rewards, as Edit-R1 trains (arXiv 2510.16888).
//!
//! The functions stand in the order of the work:
//!
//! 1. [`train_iteration`] plans, has the gradient computed, adds it up over all ranks, and updates the state.
//! 2. `shard_sums` computes the gradients of this rank's shards, side by side.
//! 3. `shard_sum` adds up one shard, micro batch by micro batch.
//! 4. `ask` draws the noise of some (sample, timestep) pairs and asks the two policies that are frozen.
//! 5. `train` asks the trained one and goes from the loss back to the adapter ([`pair_gradient`] does both).
//! 6. [`update`] clips, makes AdamW's step, and lets the EMA and the old policy follow.
//!
//! The formulas are in [`nft`], [`adamw`](crate::adamw) and [`schedule`](crate::schedule); which pairs
//! there are is in [`plan`](crate::plan), and how sums get their bits in [`shards`].

mod error;
mod finding;
mod frozen;
mod input;
mod progress;
mod rank;
#[cfg(test)]
mod tests;

use std::ops::Range;

use burn::tensor::{Int, Tensor, TensorData};
use retouch_models::editor::{Editor, Prepared};
use retouch_models::lora::{LoraAdapter, LoraGradient, Trained};
use retouch_models::noise;
use retouch_proto::config::NotFinite;

use self::finding::Finding;
use self::frozen::{Frozen, FrozenPolicies};
use self::progress::Progress;
use self::rank::Rank;
use crate::adamw::Moments;
use crate::clip::clip_by_norm;
use crate::lanes::Lanes;
use crate::metrics::{self, StageTimes, StepMetrics, Terms, timed};
use crate::nft::{self, NftBatch, NftConfig, Velocities};
use crate::plan::{MicroBatch, Pair};
use crate::schedule::{Update, follow};
use crate::shards::{self, ShardReduce};
use crate::state::LearnerState;

pub use self::error::StepError;
pub use self::finding::Culprit;
pub use self::input::{GroupData, SampledBy, SealedGroup, SealedIteration, StepOutput};
pub use self::progress::{Observer, StepProgress};

/// One sample in so many may be dropped for not being finite. Where there are more, the samples are not what is wrong.
const DROPPED_MAX: usize = 10;

/// Makes one training iteration; blocking, and busy on the device all the while.
///
/// The result depends on the input alone, not on ranks or threads. Without groups
/// the state stays as it is. `observe` is called before every micro batch.
///
/// What is not finite about a sample is found by the rank that has it, and known to all. With
/// [`NotFinite::Drop`] they all begin again without it.
///
/// # Errors
///
/// See [`StepError`].
pub fn train_iteration(
    iteration: SealedIteration<'_>,
    state: &LearnerState,
    ranks: &mut dyn ShardReduce,
    observe: &mut Observer<'_>,
) -> Result<StepOutput, StepError> {
    iteration.check(state)?;
    if iteration.groups.is_empty() {
        return Ok(StepOutput {
            state: state.clone(),
            metrics: StepMetrics::default(),
        });
    }
    let learner = &iteration.config.learner;
    let mut rank = Rank::new(iteration, state);
    loop {
        // Which rank has a shard is of no influence: its pairs and their order are the plan's (A9).
        let owned = shards::owned(rank.plan.gradient_shards, ranks.rank(), ranks.world());
        let mut times = StageTimes::default();
        let sums = shard_sums(&rank, owned, &mut times, observe)?;

        let reduced = timed(&mut times.all_reduce, || ranks.all_reduce_on_device(sums));
        let mut gradient = reduced.map_err(StepError::AllReduce)?;
        let rows = rank.ledger().split_off(&mut gradient);
        // Findings came with the sum, so that all ranks have the same and decide alike without another exchange.
        if let Some(finding) = Finding::first(&rows) {
            let error = finding.error(iteration.groups);
            let dropped_max = rank.plan.all_samples().div_ceil(DROPPED_MAX);
            if learner.not_finite == NotFinite::Stop || rank.plan.excluded.len() >= dropped_max {
                return Err(error);
            }
            tracing::warn!(%error, "the iteration begins again without the sample");
            rank.plan.excluded.insert(finding.sample);
            continue;
        }

        // Only now is the number of pairs known to be right: shards add sums, not means.
        let pairs = rank.plan.pairs();
        gradient.iter_mut().for_each(|g| *g /= pairs as f32);
        let mut next = state.clone();
        let update_now = Update::at(learner, state.step + 1);
        let grad_norm = timed(&mut times.optimizer, || {
            update(&mut next, gradient, &update_now)
        });
        if !grad_norm.is_finite() {
            return Err(StepError::GradientNotFinite(grad_norm));
        }
        let terms = Terms::means(&rows, pairs);
        let metrics = StepMetrics {
            samples: rank.plan.samples(),
            pairs,
            loss: terms.policy_loss + learner.kl_beta * terms.kl,
            terms,
            grad_norm,
            learning_rate: update_now.adamw.learning_rate,
            eta: update_now.eta,
            times,
        };
        return Ok(StepOutput {
            state: next,
            metrics,
        });
    }
}

/// The sums of the shards `owned` on the device, each with its row of the ledger at the end.
fn shard_sums(
    rank: &Rank<'_>,
    owned: Range<usize>,
    times: &mut StageTimes,
    observe: &mut Observer<'_>,
) -> Result<Vec<Tensor<1>>, StepError> {
    let batches = |shard| (shard, rank.plan.shard_batches(shard));
    let work: Vec<(usize, Vec<MicroBatch>)> = owned.map(batches).collect();
    let pairs = work.iter().flat_map(|(_, batches)| batches).map(Vec::len);
    let progress = Progress::new(pairs.sum(), observe);
    let lanes = Lanes::for_device(rank.iteration.editor.device());
    let results = lanes.map_with(
        work,
        // Lanes have leaves of their own: graphs that share none can go back side by side.
        || rank.trained_adapter(),
        |theta, (shard, batches)| shard_sum(rank, theta, shard, &batches, &progress),
    );
    let results = results.into_iter().collect::<Result<Vec<_>, _>>()?;
    let (sums, lane_times): (Vec<_>, Vec<_>) = results.into_iter().unzip();
    times.add_lanes(&lane_times, lanes.count().min(sums.len()));
    Ok(sums)
}

/// The summed gradient of a shard on the device, with its row of the ledger at the end.
fn shard_sum(
    rank: &Rank<'_>,
    theta: &LoraAdapter,
    shard: usize,
    batches: &[MicroBatch],
    progress: &Progress<'_, '_>,
) -> Result<(Tensor<1>, StageTimes), StepError> {
    let mut times = StageTimes::default();
    let mut sum = LoraGradient::zero(theta);
    let mut terms = Terms::default();
    let mut finding = None;
    'shard: for run in rank.runs(batches)? {
        let (mut asked, mut done) = (None, 0);
        for batch in run {
            progress.advance(batch.len())?;
            let asked = match &asked {
                Some(asked) => asked,
                None => asked.insert(ask(rank, &run.concat(), &mut times)?),
            };
            let part = asked.rows(done..done + batch.len());
            done += batch.len();
            let part = train(rank, theta, part, &mut times)?;
            let x0 = rank.group(batch[0].sample.group)?.x0;
            finding = Finding::of(batch, x0, &part, |pairs| {
                let asked = ask(rank, pairs, &mut times)?;
                Ok(train(rank, theta, asked, &mut times)?.is_finite)
            })?;
            // The iteration ends or begins again, so the rest of this shard is of no use. It is no error yet: the other
            // ranks wait for this shard's sum, and read in its row what happened.
            if finding.is_some() {
                break 'shard;
            }
            sum.add(part.gradient);
            terms.add(&part.terms);
        }
    }
    let row = [&terms.row()[..], &Finding::row(finding)].concat();
    let gradient = sum.into_tensor();
    let table = rank.ledger().table(shard, &row);
    let table = Tensor::from_floats(&table[..], &gradient.device());
    Ok((Tensor::cat(vec![gradient, table], 0), times))
}

/// Pairs of one group, and what the policies that are not trained say of them.
struct Asked {
    group: usize,
    batch: NftBatch,
    frozen: Frozen,
}

impl Asked {
    /// Some of the pairs.
    fn rows(&self, rows: Range<usize>) -> Self {
        Self {
            group: self.group,
            batch: self.batch.rows(rows.clone()),
            frozen: self.frozen.rows(rows),
        }
    }
}

/// Pairs of one group at noise that depends on nothing but the pair (A9).
fn ask(rank: &Rank<'_>, pairs: &[Pair], times: &mut StageTimes) -> Result<Asked, StepError> {
    let SealedIteration { editor, config, .. } = rank.iteration;
    let position = pairs[0].sample.group;
    let group = rank.group(position)?;
    let noised = || -> Result<NftBatch, StepError> {
        let ([_, tokens, channels], device) = (group.x0.dims(), group.x0.device());
        let steps = config.rollout.num_inference_steps as usize;
        let sigmas = editor.scheduler.sigmas(steps, tokens)?;
        let t: Vec<f32> = pairs.iter().map(|pair| sigmas[pair.timestep]).collect();

        let rows: Vec<i64> = pairs.iter().map(|pair| pair.sample.index as i64).collect();
        let rows = Tensor::<1, Int>::from_data(TensorData::new(rows, [pairs.len()]), &device);
        let x0 = group.x0.clone().select(0, rows);
        // Drawn on the host: devices have generators of their own, whose numbers differ.
        let seeds = pairs.iter().map(|pair| rank.plan.noise_seed(pair));
        let seeds: Vec<u64> = seeds.collect();
        let noise = noise::normal_batch(&seeds, [tokens, channels], &device);
        let x_t = nft::add_noise(x0.clone(), noise, &t);
        let advantages = pairs.iter().map(|pair| group.advantages[pair.sample.index]);
        Ok(NftBatch {
            x0,
            x_t,
            t,
            advantages: advantages.collect(),
        })
    };
    let batch = timed(&mut times.prepare, noised)?;
    let policies = FrozenPolicies {
        old: group.old.as_ref(),
        reference: rank.reference.as_ref(),
    };
    let frozen = Frozen::ask(editor, &group.condition, policies, &batch, &rank.nft, times);
    Ok(Asked {
        group: position,
        batch,
        frozen,
    })
}

/// The gradient of pairs of one group.
fn train<'a>(
    rank: &'a Rank<'_>,
    theta: &'a LoraAdapter,
    asked: Asked,
    times: &mut StageTimes,
) -> Result<PairGradient<'a>, StepError> {
    let SealedIteration { editor, config, .. } = rank.iteration;
    let group = rank.group(asked.group)?;
    let policies = Policies {
        editor,
        condition: &group.condition,
        theta: Trained {
            adapter: theta,
            checkpointing: config.learner.activation_checkpointing,
        },
        old: group.old.as_ref(),
        reference: rank.reference.as_ref(),
    };
    let Asked { batch, frozen, .. } = asked;
    Ok(trained_gradient(policies, &batch, frozen, &rank.nft, times))
}

/// The three policies of the loss, under one condition.
#[derive(Clone, Copy, Debug)]
pub struct Policies<'a> {
    /// The base model that they share.
    pub editor: &'a Editor,
    /// What they are asked under.
    pub condition: &'a Prepared,
    /// The trained one.
    pub theta: Trained<'a>,
    /// The one that sampled; `None` if it is the trained one.
    pub old: Option<&'a LoraAdapter>,
    /// The one that the KL term measures from; `None` is the base model.
    pub reference: Option<&'a LoraAdapter>,
}

/// What a batch of pairs gives.
#[derive(Clone, Debug)]
pub struct PairGradient<'a> {
    /// Gradient of the loss, summed over the pairs; on the device.
    pub gradient: LoraGradient<'a>,
    /// Whether every value of it is finite.
    pub is_finite: bool,
    /// What was measured at each pair; on the host.
    pub terms: Terms<Vec<f32>>,
}

/// The gradient of the loss of a batch, summed over its pairs; the device is waited for once, at the end.
pub fn pair_gradient<'a>(
    policies: Policies<'a>,
    batch: &NftBatch,
    config: &NftConfig,
    times: &mut StageTimes,
) -> PairGradient<'a> {
    let Policies {
        editor, condition, ..
    } = policies;
    let frozen_policies = FrozenPolicies {
        old: policies.old,
        reference: policies.reference,
    };
    let frozen = Frozen::ask(editor, condition, frozen_policies, batch, config, times);
    trained_gradient(policies, batch, frozen, config, times)
}

/// As [`pair_gradient`], with what the frozen policies say.
fn trained_gradient<'a>(
    policies: Policies<'a>,
    batch: &NftBatch,
    frozen: Frozen,
    config: &NftConfig,
    times: &mut StageTimes,
) -> PairGradient<'a> {
    let Policies {
        editor, condition, ..
    } = policies;
    let (x_t, pairs) = (batch.x_t.clone(), batch.t.len());
    times.evaluations.theta += pairs;
    let (theta, loss) = timed(&mut times.forward, || {
        let theta = editor.tracked_velocity_of(x_t, batch.times(), condition, policies.theta);
        let velocities = Velocities {
            v_theta: theta.output(),
            v_old: frozen.v_old,
            v_ref: frozen.v_ref,
        };
        (theta, nft::nft_loss(batch, velocities, config))
    });
    timed(&mut times.backward, || {
        let gradients = loss.loss.backward();
        let gradient = theta.gradient(&gradients);
        // This flag is computed from all that the batch computes, so to read it is to wait for all of it.
        let (terms, is_finite) = metrics::read(loss.terms, gradient.is_finite());
        PairGradient {
            gradient,
            is_finite,
            terms,
        }
    })
}

/// Makes the next state from a mean gradient; returns the gradient's norm before clipping.
///
/// # Panics
///
/// If the gradient is not as long as the adapter.
pub fn update(state: &mut LearnerState, mut gradient: Vec<f32>, update: &Update) -> f64 {
    state.step += 1;
    // One norm over all factors, as the reference has it; burn would clip tensor by tensor.
    let norm = clip_by_norm(&mut gradient, update.max_grad_norm);
    let moments = Moments {
        first: &mut state.adam_m,
        second: &mut state.adam_v,
    };
    let adamw = update.adamw;
    adamw.update(state.step, &mut state.theta, &gradient, moments);
    // The EMA is never sampled from; the old policy samples the next iteration.
    follow(&mut state.ema, &state.theta, update.ema_decay);
    follow(&mut state.old, &state.theta, update.eta);
    norm
}
