//! What an iteration tells about itself.

use std::ops::AddAssign;
use std::time::{Duration, Instant};

use burn::tensor::{Bool, DType, Tensor};
use retouch_proto::task::TrainMetrics;
use serde::Serialize;

/// Means over all (sample, timestep) pairs of an iteration, and its gradient.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct StepMetrics {
    /// Samples that were learned from.
    pub samples: usize,
    /// (sample, timestep) pairs that were learned from.
    pub pairs: usize,
    /// policy_loss + kl_beta kl_div.
    pub loss: f64,
    /// Means over the pairs; largest over them where a term is a largest element.
    pub terms: Terms<f64>,
    /// Norm of the gradient before clipping.
    pub grad_norm: f64,
    /// The optimizer's, at this step of the warm-up.
    pub learning_rate: f64,
    /// Share of itself that the old policy kept.
    pub eta: f64,
    /// Where this rank's time went.
    pub times: StageTimes,
}

impl From<StepMetrics> for TrainMetrics {
    /// Without the stages before and after the step.
    fn from(metrics: StepMetrics) -> Self {
        let StepMetrics { terms, times, .. } = metrics;
        Self {
            policy_loss: terms.policy_loss,
            kl_div: terms.kl,
            old_kl_div: terms.old_kl,
            old_deviate: terms.old_deviate,
            old_deviate_max: terms.old_deviate_max,
            x0_norm: terms.x0_norm,
            x0_norm_max: terms.x0_norm_max,
            grad_norm: metrics.grad_norm,
            learning_rate: metrics.learning_rate,
            samples: metrics.samples as u64,
            pairs: metrics.pairs as u64,
            fetch_s: 0.0,
            prepare_s: times.prepare.as_secs_f64(),
            v_old_s: times.v_old.as_secs_f64(),
            v_ref_s: times.v_ref.as_secs_f64(),
            forward_s: times.forward.as_secs_f64(),
            backward_s: times.backward.as_secs_f64(),
            all_reduce_s: times.all_reduce.as_secs_f64(),
            optimizer_s: times.optimizer.as_secs_f64(),
            checkpoint_s: 0.0,
            publish_s: 0.0,
        }
    }
}

/// Wall time of one rank by stage.
///
/// Devices that compute asynchronously are waited for once a micro batch, at the end
/// of its backward pass, so there the stages before it count launches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StageTimes {
    /// Noise and batches.
    pub prepare: Duration,
    /// Forward passes of the old policy.
    pub v_old: Duration,
    /// Forward passes of the base.
    pub v_ref: Duration,
    /// Forward passes of the trained policy, and the loss.
    pub forward: Duration,
    /// Backward passes, with what is computed again for them.
    pub backward: Duration,
    /// The sum over ranks, waiting for the slowest included.
    pub all_reduce: Duration,
    /// Clipping, AdamW, EMA and old policy.
    pub optimizer: Duration,
    /// What the passes were made for.
    pub evaluations: Evaluations,
}

/// (sample, timestep) pairs for which one rank asked each policy for a velocity.
///
/// What is computed again on the way back is not counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Evaluations {
    /// The trained policy.
    pub theta: usize,
    /// The policy that sampled.
    pub old: usize,
    /// The base.
    pub reference: usize,
}

impl AddAssign for Evaluations {
    fn add_assign(&mut self, other: Self) {
        self.theta += other.theta;
        self.old += other.old;
        self.reference += other.reference;
    }
}

impl StageTimes {
    /// Adds the times of lanes that ran side by side, as their share of the wall time.
    pub(crate) fn add_lanes(&mut self, times: &[Self], lanes: usize) {
        let lanes = lanes as u32;
        for t in times {
            self.prepare += t.prepare / lanes;
            self.v_old += t.v_old / lanes;
            self.v_ref += t.v_ref / lanes;
            self.forward += t.forward / lanes;
            self.backward += t.backward / lanes;
            self.evaluations += t.evaluations;
        }
    }
}

/// Runs `work` and adds its wall time to `total`.
pub(crate) fn timed<T>(total: &mut Duration, work: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let result = work();
    *total += start.elapsed();
    result
}

/// What is measured at each (sample, timestep) pair.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Terms<T> {
    /// The policy loss.
    pub policy_loss: T,
    /// mean (v_theta - v_ref)^2.
    pub kl: T,
    /// mean (v_old - v_ref)^2.
    pub old_kl: T,
    /// mean (v_theta - v_old)^2.
    pub old_deviate: T,
    /// max (v_theta - v_old)^2.
    pub old_deviate_max: T,
    /// mean x0^2.
    pub x0_norm: T,
    /// max x0^2.
    pub x0_norm_max: T,
}

/// How many terms there are.
pub(crate) const TERMS: usize = 7;

impl<T> Terms<T> {
    fn into_array(self) -> [T; TERMS] {
        [
            self.policy_loss,
            self.kl,
            self.old_kl,
            self.old_deviate,
            self.old_deviate_max,
            self.x0_norm,
            self.x0_norm_max,
        ]
    }

    /// The terms in the order of [`into_array`](Self::into_array), by number.
    fn from_fn(mut term: impl FnMut(usize) -> T) -> Self {
        Self {
            policy_loss: term(0),
            kl: term(1),
            old_kl: term(2),
            old_deviate: term(3),
            old_deviate_max: term(4),
            x0_norm: term(5),
            x0_norm_max: term(6),
        }
    }
}

/// A shard's sums and maxima.
impl Terms<f64> {
    /// Adds the pairs of a batch, in order.
    pub(crate) fn add(&mut self, terms: &Terms<Vec<f32>>) {
        let sum = |values: &[f32]| values.iter().map(|&v| f64::from(v)).sum::<f64>();
        let max = |values: &[f32]| values.iter().copied().fold(0.0, f32::max);
        self.policy_loss += sum(&terms.policy_loss);
        self.kl += sum(&terms.kl);
        self.old_kl += sum(&terms.old_kl);
        self.old_deviate += sum(&terms.old_deviate);
        self.x0_norm += sum(&terms.x0_norm);
        self.old_deviate_max = self.old_deviate_max.max(max(&terms.old_deviate_max).into());
        self.x0_norm_max = self.x0_norm_max.max(max(&terms.x0_norm_max).into());
    }

    /// The sums as they travel to the other ranks.
    pub(crate) fn row(self) -> [f32; TERMS] {
        self.into_array().map(|v| v as f32)
    }

    /// Means over `pairs` pairs of all shards' rows, which begin with [`row`](Self::row); of largest elements the
    /// largest.
    pub(crate) fn means(rows: &[Vec<f32>], pairs: usize) -> Self {
        let column = |i: usize| rows.iter().map(move |row| f64::from(row[i]));
        let maxima = Self::from_fn(|i| column(i).fold(0.0, f64::max));
        Self {
            old_deviate_max: maxima.old_deviate_max,
            x0_norm_max: maxima.x0_norm_max,
            ..Self::from_fn(|i| column(i).sum::<f64>() / pairs.max(1) as f64)
        }
    }
}

/// Reads all terms and a flag at once, waiting for the device; a flag that is not there is set.
pub(crate) fn read(
    terms: Terms<Tensor<1>>,
    flag: Option<Tensor<1, Bool>>,
) -> (Terms<Vec<f32>>, bool) {
    let [pairs] = terms.policy_loss.dims();
    let mut parts = terms.into_array().to_vec();
    parts.extend(flag.map(|flag| flag.bool_not().float().cast(DType::F32)));
    // In one piece: a device that is asked for eight is waited for more than once.
    let values = host(Tensor::cat(parts, 0));
    let (terms, unset) = values.split_at(TERMS * pairs);
    let terms = Terms::from_fn(|i| terms[i * pairs..][..pairs].to_vec());
    (terms, unset.iter().all(|unset| *unset == 0.0))
}

/// A tensor's values on the host, in row-major order.
pub(crate) fn host<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    let data = tensor.into_data().convert::<f32>();
    data.try_into_vec()
        .expect("the values were just converted to f32")
}
