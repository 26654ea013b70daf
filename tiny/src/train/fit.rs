//! A plain training loop's state: all parameters as one vector, under AdamW, with a warm-up, a
//! cosine decay and an average of the parameters.

use burn::module::Module;
use burn::tensor::{Device, Tensor};
use retouch_learner::adamw::{AdamWConfig, Moments};
use retouch_learner::clip::clip_by_norm;
use retouch_learner::lanes::Lanes;
use retouch_learner::schedule;
use retouch_learner::sft::{Decay, LearningRate, flat};

/// Longest gradient that is applied as it is.
const GRADIENT_NORM_MAX: f64 = 1.0;

/// Most of itself that the average keeps.
const EMA_DECAY_MAX: f64 = 0.99;

/// How a module is trained.
#[derive(Clone, Copy, Debug)]
pub(super) struct Recipe {
    /// Updates.
    pub(super) steps: u64,
    /// Updates until the full learning rate.
    pub(super) warmup_steps: u64,
    /// The full learning rate.
    pub(super) learning_rate: f64,
    /// Decay of the second moment.
    pub(super) beta2: f64,
    /// Decoupled weight decay.
    pub(super) weight_decay: f64,
}

/// A module in training.
pub(super) struct Fit<M> {
    module: M,
    recipe: Recipe,
    lanes: Lanes,
    step: u64,
    parameters: Vec<f32>,
    first: Vec<f32>,
    second: Vec<f32>,
    average: Vec<f32>,
}

impl<M: Module + Sync> Fit<M> {
    pub(super) fn new(module: M, recipe: Recipe) -> Self {
        let parameters = flat::parameters(&module);
        let zeros = vec![0.0; parameters.len()];
        Self {
            module,
            recipe,
            lanes: Lanes::for_device(&Device::flex()),
            step: 0,
            first: zeros.clone(),
            second: zeros,
            average: parameters.clone(),
            parameters,
        }
    }

    /// Updates made.
    pub(super) fn step(&self) -> u64 {
        self.step
    }

    /// One update by the mean loss of equal parts of a batch; returns that mean.
    ///
    /// `loss` gives the mean loss of a part: `[1]`.
    pub(super) fn update<B: Send>(
        &mut self,
        parts: Vec<B>,
        loss: impl Fn(&M, B) -> Tensor<1> + Sync,
    ) -> f64 {
        let count = parts.len() as f32;
        let trained = Device::flex().autodiff();
        let start = || flat::with_parameters(self.module.clone(), &self.parameters, &trained);
        let results = self.lanes.map_with(parts, start, |module, part| {
            let loss = loss(module, part);
            let value: f32 = loss.clone().inner().into_scalar();
            (value, flat::gradients(module, loss.backward()))
        });
        let mut gradient = vec![0.0; self.parameters.len()];
        for (_, part) in &results {
            gradient
                .iter_mut()
                .zip(part)
                .for_each(|(sum, value)| *sum += value / count);
        }
        self.apply(gradient);
        let sum: f32 = results.iter().map(|(value, _)| value).sum();
        f64::from(sum / count)
    }

    fn apply(&mut self, mut gradient: Vec<f32>) {
        self.step += 1;
        clip_by_norm(&mut gradient, GRADIENT_NORM_MAX);
        let recipe = &self.recipe;
        let rate = LearningRate {
            warmup_steps: recipe.warmup_steps,
            decay: Decay::Cosine,
        };
        let adamw = AdamWConfig {
            learning_rate: recipe.learning_rate * rate.factor(self.step, recipe.steps),
            beta2: recipe.beta2,
            weight_decay: recipe.weight_decay,
            ..AdamWConfig::default()
        };
        let moments = Moments {
            first: &mut self.first,
            second: &mut self.second,
        };
        adamw.update(self.step, &mut self.parameters, &gradient, moments);
        let decay = schedule::ema_decay(self.step, EMA_DECAY_MAX);
        schedule::follow(&mut self.average, &self.parameters, decay);
    }

    /// The module with the averaged parameters, off the autodiff device.
    pub(super) fn averaged(&self) -> M {
        flat::with_parameters(self.module.clone(), &self.average, &Device::flex())
    }
}
