//! The DiffusionNFT loss (arXiv 2509.16117), as Edit-R1 uses it.
//!
//! The network predicts a velocity v = eps - x0, so that a prediction at
//! x_t = (1 - t) x0 + t eps implies the clean latent x0_hat(v) = x_t - t v.
//! Three policies predict on the same (x_t, t, condition): the trained one
//! (v_theta), the one that sampled (v_old) and the reference (v_ref). Two mixtures of
//! the first two are rewarded and punished:
//!
//! ```text
//! v_pos = beta v_theta + (1 - beta) v_old
//! v_neg = (1 + beta) v_old - beta v_theta
//! L(v)  = mean (x0_hat(v) - x0)^2 / stopgrad(mean |x0_hat(v) - x0|)
//! r     = the advantage, clipped to +-c and mapped to 0..1
//! loss  = c (r L(v_pos) + (1 - r) L(v_neg)) / beta + kl_beta mean (v_theta - v_ref)^2
//! ```
//!
//! The loss is a sum over (sample, timestep) pairs, not a mean: sums of parts add up to
//! the sum of the whole, however samples are packed into batches, shards and ranks.

use std::ops::Range;

use burn::tensor::{DType, Device, FloatDType, Tensor, TensorData};
use retouch_proto::RunConfig;
use retouch_proto::config::AdvMode;

use crate::metrics::Terms;

/// The smallest weight by which a squared error is divided.
const WEIGHT_MIN: f64 = 1e-5;

/// The loss's constants, under the paper's names.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NftConfig {
    /// How far the two mixtures reach from the old policy; 1 is the paper's.
    pub beta: f64,
    /// Weight of the pull towards the reference.
    pub kl_beta: f64,
    /// Advantages are clipped to this on both sides; also scales the loss.
    pub adv_clip_max: f64,
    /// What becomes of clipped advantages.
    pub adv_mode: AdvMode,
}

impl NftConfig {
    /// The settings of a run file.
    pub fn from_run(run: &RunConfig) -> Self {
        Self {
            beta: run.learner.nft_beta,
            kl_beta: run.learner.kl_beta,
            adv_clip_max: run.advantage.adv_clip_max,
            adv_mode: run.advantage.adv_mode,
        }
    }

    /// The weight r in 0..1 of the positive term for an advantage.
    pub fn positive_weight(&self, advantage: f64) -> f64 {
        let c = self.adv_clip_max;
        let advantage = apply(self.adv_mode, advantage.clamp(-c, c));
        (advantage / c / 2.0 + 0.5).clamp(0.0, 1.0)
    }
}

/// What a clipped advantage becomes.
fn apply(mode: AdvMode, advantage: f64) -> f64 {
    match mode {
        AdvMode::All => advantage,
        AdvMode::PositiveOnly => advantage.max(0.0),
        AdvMode::NegativeOnly => advantage.min(0.0),
        AdvMode::OneOnly => f64::from(u8::from(advantage > 0.0)),
        AdvMode::Binary if advantage == 0.0 => 0.0,
        AdvMode::Binary => advantage.signum(),
    }
}

/// A batch of (sample, timestep) pairs.
///
/// # Shapes
///
/// Tensors are [B, S, C]; the lists have B entries.
#[derive(Clone, Debug)]
pub struct NftBatch {
    /// Clean latents.
    pub x0: Tensor<3>,
    /// Noised latents, see [`add_noise`].
    pub x_t: Tensor<3>,
    /// Noise levels in 0..1.
    pub t: Vec<f32>,
    /// Advantages of the samples.
    pub advantages: Vec<f64>,
}

impl NftBatch {
    /// Some of the pairs.
    pub(crate) fn rows(&self, pairs: Range<usize>) -> Self {
        Self {
            x0: rows(&self.x0, &pairs),
            x_t: rows(&self.x_t, &pairs),
            t: self.t[pairs.clone()].to_vec(),
            advantages: self.advantages[pairs].to_vec(),
        }
    }

    /// The noise levels on the device of the latents: [B]
    pub(crate) fn times(&self) -> Tensor<1> {
        let [t] = on_device([self.t.clone()], &self.x_t.device());
        t
    }
}

/// What the three policies predict for a batch. All are [B, S, C].
#[derive(Clone, Debug)]
pub struct Velocities {
    /// The trained policy's, on an autodiff device.
    pub v_theta: Tensor<3>,
    /// Of the policy that sampled x0; `None` means that it is the trained one.
    pub v_old: Option<Tensor<3>>,
    /// The reference's; `None` leaves the KL term out.
    pub v_ref: Option<Tensor<3>>,
}

/// The loss of a batch.
#[derive(Clone, Debug)]
pub struct NftLoss {
    /// policy_loss + kl_beta kl, summed over the pairs and tracked for the backward pass: `[1]`
    pub loss: Tensor<1>,
    /// Every pair's values, off the graph. All are `[B]`.
    pub terms: Terms<Tensor<1>>,
}

/// The noised latent x_t = (1 - t) x0 + t eps.
///
/// # Shapes
///
/// `x0` and `noise` are [B, S, C], `t` has B entries; [B, S, C] comes back.
pub fn add_noise(x0: Tensor<3>, noise: Tensor<3>, t: &[f32]) -> Tensor<3> {
    let [t] = on_device([t.to_vec()], &x0.device());
    let t = per_sample(t);
    let clean = t.clone().neg() + 1.0;
    x0 * clean + noise * t
}

/// The DiffusionNFT loss of a batch.
///
/// # Panics
///
/// If the shapes disagree.
pub fn nft_loss(batch: &NftBatch, velocities: Velocities, config: &NftConfig) -> NftLoss {
    let NftBatch {
        x0,
        x_t,
        t,
        advantages,
    } = batch;
    let Velocities {
        v_theta,
        v_old,
        v_ref,
    } = velocities;
    let [b, ..] = x0.dims();
    assert!(
        [t.len(), advantages.len()] == [b; 2],
        "lists have one entry per pair"
    );

    let beta = config.beta;
    let v_old = v_old.unwrap_or_else(|| v_theta.clone().inner());
    let v_pos = v_theta.clone() * beta + v_old.clone() * (1.0 - beta);
    let v_neg = v_old.clone() * (1.0 + beta) - v_theta.clone() * beta;

    let c = config.adv_clip_max;
    let r = advantages.iter().map(|&a| config.positive_weight(a));
    let r: Vec<f64> = r.collect();
    let weights = |weight: fn(f64) -> f64| -> Vec<f32> {
        r.iter().map(|&r| (c * weight(r) / beta) as f32).collect()
    };
    let lists = [t.clone(), weights(|r| r), weights(|r| 1.0 - r)];
    let [t, positive, negative] = on_device(lists, &x0.device().inner());

    let t = per_sample(t);
    let x0_hat = |v: Tensor<3>| x_t.clone() - v * t.clone();
    let l_pos = weighted_error(x0_hat(v_pos), x0);
    let l_neg = weighted_error(x0_hat(v_neg), x0);
    let policy_loss = l_pos * positive + l_neg * negative;

    let kl = match &v_ref {
        Some(v_ref) => mean_square(v_theta.clone() - v_ref.clone()),
        None => zeros(x0),
    };
    let pair_loss = policy_loss.clone() + kl.clone() * config.kl_beta;
    let old_deviation = (v_theta.inner() - v_old.clone()).square();
    let x0_square = x0.clone().square();
    NftLoss {
        loss: pair_loss.sum(),
        terms: Terms {
            policy_loss: policy_loss.inner(),
            kl: kl.inner(),
            old_kl: v_ref.map_or_else(|| zeros(x0), |v_ref| mean_square(v_old - v_ref)),
            old_deviate: mean(old_deviation.clone()),
            old_deviate_max: max(old_deviation),
            x0_norm: mean(x0_square.clone()),
            x0_norm_max: max(x0_square),
        },
    }
}

/// mean (x0_hat - x0)^2 / w with w = mean |x0_hat - x0|, which gets no gradient.
fn weighted_error(x0_hat: Tensor<3>, x0: &Tensor<3>) -> Tensor<1> {
    let deviation = x0_hat.clone().inner().cast(FloatDType::F64) - x0.clone().cast(FloatDType::F64);
    let weight = mean(deviation.abs()).clamp_min(WEIGHT_MIN);
    mean_square(x0_hat - x0.clone()) * weight.recip().cast(FloatDType::F32)
}

/// The mean square of each sample: `[B]`
pub(crate) fn mean_square(x: Tensor<3>) -> Tensor<1> {
    mean(x.clone() * x)
}

fn flat(x: Tensor<3>) -> Tensor<2> {
    let [b, s, c] = x.dims();
    x.reshape([b, s * c])
}

fn mean(x: Tensor<3>) -> Tensor<1> {
    flat(x).mean_dim(1).flatten(0, 1)
}

fn max(x: Tensor<3>) -> Tensor<1> {
    flat(x).max_dim(1).flatten(0, 1)
}

fn zeros(like: &Tensor<3>) -> Tensor<1> {
    Tensor::zeros([like.dims()[0]], (&like.device().inner(), DType::F32))
}

/// Lists of one length as tensors; they travel together.
fn on_device<const N: usize>(lists: [Vec<f32>; N], device: &Device) -> [Tensor<1>; N] {
    let len = lists[0].len();
    let data = TensorData::new(lists.concat(), [N, len]);
    let all = Tensor::<2>::from_data(data, device);
    std::array::from_fn(|i| all.clone().narrow(0, i, 1).reshape([len]))
}

/// One value for each sample, for all of its elements.
fn per_sample(values: Tensor<1>) -> Tensor<3> {
    let [samples] = values.dims();
    values.reshape([samples, 1, 1])
}

/// Some of the samples.
pub(crate) fn rows(x: &Tensor<3>, samples: &Range<usize>) -> Tensor<3> {
    x.clone().narrow(0, samples.start, samples.len())
}
