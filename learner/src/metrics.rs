//! What an iteration tells about itself.

use std::ops::AddAssign;
use std::time::{Duration, Instant};

use burn::tensor::{Device, Tensor};
use retouch_proto::task::TrainMetrics;
use serde::Serialize;

use crate::nft::NftTerms;

/// Means over all (sample, timestep) pairs of an iteration, and its gradient.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct StepMetrics {
    /// Samples that were learned from.
    pub samples: usize,
    /// (sample, timestep) pairs that were learned from.
    pub pairs: usize,
    /// policy_loss + kl_beta kl_div.
    pub loss: f64,
    /// The rewarded and the punished branch.
    pub policy_loss: f64,
    /// Mean squared distance of the trained policy's velocity from the base's.
    pub kl_div: f64,
    /// The same of the old policy.
    pub old_kl_div: f64,
    /// Mean squared distance of the trained policy's velocity from the old one's.
    pub old_deviate: f64,
    /// Its largest element.
    pub old_deviate_max: f64,
    /// Mean square of the clean latents.
    pub x0_norm: f64,
    /// Their largest squared element.
    pub x0_norm_max: f64,
    /// Norm of the gradient before clipping.
    pub grad_norm: f64,
    /// Share of itself that the old policy kept.
    pub eta: f64,
    /// Where this rank's time went.
    pub times: StageTimes,
}

impl From<StepMetrics> for TrainMetrics {
    /// Without the stages before and after the step.
    fn from(metrics: StepMetrics) -> Self {
        let times = metrics.times;
        Self {
            policy_loss: metrics.policy_loss,
            kl_div: metrics.kl_div,
            old_kl_div: metrics.old_kl_div,
            old_deviate: metrics.old_deviate,
            old_deviate_max: metrics.old_deviate_max,
            x0_norm: metrics.x0_norm,
            x0_norm_max: metrics.x0_norm_max,
            grad_norm: metrics.grad_norm,
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
/// Devices that compute asynchronously are waited for at the end of the backward
/// pass alone, so there the stages before it count launches.
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

/// As [`timed`], for work that is done when the device is.
pub(crate) fn timed_on<T>(device: &Device, total: &mut Duration, work: impl FnOnce() -> T) -> T {
    timed(total, || {
        let result = work();
        // What went wrong shows when the result is read.
        let _ = device.sync();
        result
    })
}

/// Running sums of a shard.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct TermSums {
    policy_loss: f64,
    kl: f64,
    old_kl: f64,
    old_deviate: f64,
    old_deviate_max: f64,
    x0_norm: f64,
    x0_norm_max: f64,
}

impl TermSums {
    /// Number of values in [`row`](Self::row).
    pub(crate) const SLOTS: usize = 7;

    /// Adds the pairs of a batch, in order.
    pub(crate) fn add(&mut self, terms: &PairTerms) {
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
    pub(crate) fn row(&self) -> [f32; Self::SLOTS] {
        [
            self.policy_loss,
            self.kl,
            self.old_kl,
            self.old_deviate,
            self.old_deviate_max,
            self.x0_norm,
            self.x0_norm_max,
        ]
        .map(|v| v as f32)
    }

    /// Means over `pairs` pairs of all shards' rows.
    pub(crate) fn means(rows: &[Vec<f32>], pairs: usize, kl_beta: f64) -> StepMetrics {
        let column = |i: usize| rows.iter().map(move |row| f64::from(row[i]));
        let mean = |i: usize| column(i).sum::<f64>() / pairs.max(1) as f64;
        let max = |i: usize| column(i).fold(0.0, f64::max);
        let (policy_loss, kl_div) = (mean(0), mean(1));
        StepMetrics {
            pairs,
            loss: policy_loss + kl_beta * kl_div,
            policy_loss,
            kl_div,
            old_kl_div: mean(2),
            old_deviate: mean(3),
            old_deviate_max: max(4),
            x0_norm: mean(5),
            x0_norm_max: max(6),
            ..StepMetrics::default()
        }
    }
}

/// [`NftTerms`] on the host: one value per pair.
#[derive(Clone, Debug)]
pub(crate) struct PairTerms {
    pub(crate) policy_loss: Vec<f32>,
    pub(crate) kl: Vec<f32>,
    old_kl: Vec<f32>,
    old_deviate: Vec<f32>,
    old_deviate_max: Vec<f32>,
    x0_norm: Vec<f32>,
    x0_norm_max: Vec<f32>,
}

impl PairTerms {
    /// Reads all terms at once, waiting for the device.
    pub(crate) fn read(terms: NftTerms) -> Self {
        let terms = [
            terms.policy_loss,
            terms.kl,
            terms.old_kl,
            terms.old_deviate,
            terms.old_deviate_max,
            terms.x0_norm,
            terms.x0_norm_max,
        ];
        let rows: Tensor<2> = Tensor::stack(terms.into(), 0);
        let pairs = rows.dims()[1];
        let values = host(rows);
        let [
            policy_loss,
            kl,
            old_kl,
            old_deviate,
            old_deviate_max,
            x0_norm,
            x0_norm_max,
        ] = std::array::from_fn(|i| values[i * pairs..(i + 1) * pairs].to_vec());
        Self {
            policy_loss,
            kl,
            old_kl,
            old_deviate,
            old_deviate_max,
            x0_norm,
            x0_norm_max,
        }
    }
}

/// A tensor's values on the host, in row-major order.
pub(crate) fn host<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    let data = tensor.into_data().convert::<f32>();
    data.try_into_vec()
        .expect("the values were just converted to f32")
}
