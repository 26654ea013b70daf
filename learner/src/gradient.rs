//! The gradient of one batch: three predictions, the loss, the way back.

use burn::tensor::{Tensor, TensorData};
use retouch_models::lora::{LoraGradient, Tracked};

use crate::metrics::{StageTimes, timed_on};
use crate::nft::{self, NftBatch, NftConfig, NftLoss};

/// Predicts velocities: x_t [B, S, C] and t [B] in 0..1 to [B, S, C]. The condition is part of it.
pub type Velocity<'a> = dyn Fn(Tensor<3>, Tensor<1>) -> Tensor<3> + 'a;

/// As [`Velocity`], with the way back to the trained adapter.
pub type TrackedVelocity<'a> = dyn Fn(Tensor<3>, Tensor<1>) -> Tracked<'a> + 'a;

/// The three policies of the loss.
#[derive(Clone, Copy)]
pub struct Policies<'p, 'a> {
    /// The trained one, whose adapter lives for `'a`.
    pub theta: &'p TrackedVelocity<'a>,
    /// The one that sampled; `None` if it is the trained one.
    pub old: Option<&'p Velocity<'p>>,
    /// The base.
    pub reference: &'p Velocity<'p>,
}

/// (sample, timestep) pairs that share a condition.
///
/// # Shapes
///
/// Tensors are [B, S, C]; the lists have B entries.
#[derive(Clone, Debug)]
pub struct PairBatch {
    /// Clean latents.
    pub x0: Tensor<3>,
    /// Noise.
    pub noise: Tensor<3>,
    /// Noise levels in 0..1.
    pub t: Vec<f32>,
    /// Advantages.
    pub advantages: Vec<f64>,
    /// Pairs that are not valid count nowhere.
    pub valid: Vec<bool>,
}

/// Sums over the valid pairs of a batch.
#[derive(Clone, Debug)]
pub struct PairGradient<'a> {
    /// Gradient of the summed loss.
    pub gradient: LoraGradient<'a>,
    /// The loss and its parts.
    pub loss: NftLoss,
}

/// The loss of a batch and its gradient.
///
/// The old policy's forward pass is left out where it would repeat the trained
/// one's, and the base's where the KL term has no weight.
pub fn pair_gradient<'a>(
    policies: Policies<'_, 'a>,
    batch: &PairBatch,
    config: &NftConfig,
    times: &mut StageTimes,
) -> PairGradient<'a> {
    let x_t = nft::add_noise(batch.x0.clone(), batch.noise.clone(), &batch.t);
    let device = &x_t.device();
    let levels = TensorData::new(batch.t.clone(), [batch.t.len()]);
    let t = Tensor::from_data(levels, device);
    let predict = |velocity: &Velocity<'_>| velocity(x_t.clone(), t.clone());
    let pairs = batch.t.len();

    let v_old = policies.old.map(|old| {
        times.evaluations.old += pairs;
        timed_on(device, &mut times.v_old, || predict(old))
    });
    let v_ref = (config.kl_beta != 0.0).then(|| {
        times.evaluations.reference += pairs;
        timed_on(device, &mut times.v_ref, || predict(policies.reference))
    });
    times.evaluations.theta += pairs;
    let (theta, loss) = timed_on(device, &mut times.forward, || {
        let theta = (policies.theta)(x_t.clone(), t.clone());
        let batch = batch.with_predictions(theta.output(), v_old, v_ref);
        (theta, nft::nft_loss(batch, config))
    });
    let gradient = timed_on(device, &mut times.backward, || {
        let gradients = loss.loss.backward();
        theta.gradient(&gradients)
    });
    PairGradient { gradient, loss }
}

impl PairBatch {
    fn with_predictions(
        &self,
        v_theta: Tensor<3>,
        v_old: Option<Tensor<3>>,
        v_ref: Option<Tensor<3>>,
    ) -> NftBatch<'_> {
        NftBatch {
            x0: self.x0.clone(),
            noise: self.noise.clone(),
            v_theta,
            v_old,
            v_ref,
            t: &self.t,
            advantages: &self.advantages,
            valid: &self.valid,
        }
    }
}
