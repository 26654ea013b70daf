//! One whole optimizer step of the learner.

use std::collections::BTreeMap;

use anyhow::{Context, ensure};
use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor, TensorData};
use retouch_learner::adamw::AdamWConfig;
use retouch_learner::gradient::{PairBatch, Policies, pair_gradient};
use retouch_learner::metrics::StageTimes;
use retouch_learner::state::{LearnerState, Update};
use retouch_models::flux::{FluxCondition, FluxContext, FluxTransformer};
use retouch_models::lora::{Checkpointing, LoraAdapter, LoraPair, Projection, Tracked, Trained};
use retouch_models::weights::Weights;

use super::method::{levels, nft_config, valid};
use crate::case::Case;
use crate::compare::Outputs;

/// The step with what each kind of checkpointing keeps, which changes no bit.
pub(crate) fn nft_step(case: &Case) -> anyhow::Result<Outputs> {
    let whole = step(case, Checkpointing::None)?;
    let by_block = step(case, Checkpointing::Block)?;
    ensure!(
        by_block == whole,
        "with activation checkpointing the step is another one"
    );
    Ok(by_block)
}

fn step(case: &Case, checkpointing: Checkpointing) -> anyhow::Result<Outputs> {
    let device = Device::flex();
    let model = super::flux::load(case, &device)?.no_grad();
    let theta = Adapter::read(
        case,
        "lora_theta.safetensors",
        &model,
        &device.clone().autodiff(),
    )?;
    let old = Adapter::read(case, "lora_old.safetensors", &model, &device)?;
    let batch = PairBatch {
        x0: case.input("x0", &device)?,
        noise: case.input("noise", &device)?,
        t: levels(case)?,
        advantages: case.values("advantages")?,
        valid: valid(case)?,
    };
    let network = &Network::new(case, &model, &device)?;
    let trained = Trained {
        adapter: &theta.adapter,
        checkpointing,
    };
    let policies = Policies {
        theta: &|x_t, t| network.tracked(x_t, t, trained),
        old: Some(&|x_t, t| network.velocity(x_t, t, Some(&old.adapter))),
        reference: &|x_t, t| network.velocity(x_t, t, None),
    };
    let sums = pair_gradient(
        policies,
        &batch,
        &nft_config(case)?,
        &mut StageTimes::default(),
    );
    let count = sums.loss.count as f64;
    let gradient: Vec<f32> = sums
        .gradient
        .into_flat()
        .into_iter()
        .map(|value| (f64::from(value) / count) as f32)
        .collect();
    let mut state = LearnerState::initial(theta.adapter.to_flat());
    state.old = old.adapter.to_flat();
    state.apply(gradient.clone(), &update(case)?);
    let outputs = Outputs::default().float("out.loss", sums.loss.loss.inner() / count);
    let vectors = [
        ("grad", &gradient),
        ("out.theta", &state.theta),
        ("out.old", &state.old),
        ("out.ema", &state.ema),
    ];
    Ok(vectors
        .into_iter()
        .fold(outputs, |outputs, (prefix, flat)| {
            theta.name(outputs, prefix, flat)
        }))
}

/// Predicts v at the noised tokens; the source image's tokens behind them are only attended to.
struct Network<'a> {
    model: &'a FluxTransformer,
    context: FluxContext,
    image_latents: Tensor<3>,
}

impl<'a> Network<'a> {
    fn new(case: &Case, model: &'a FluxTransformer, device: &Device) -> anyhow::Result<Self> {
        let guidance = case
            .has_input("guidance")
            .then(|| case.input("guidance", device));
        let context = model.prepare(FluxCondition {
            encoder_hidden_states: case.input("encoder_hidden_states", device)?,
            pooled_projections: case.input("pooled_projections", device)?,
            guidance: guidance.transpose()?,
            img_ids: case.input("img_ids", device)?,
            txt_ids: case.input("txt_ids", device)?,
        });
        Ok(Self {
            model,
            context,
            image_latents: case.input("image_latents", device)?,
        })
    }

    fn velocity(&self, x_t: Tensor<3>, t: Tensor<1>, adapter: Option<&LoraAdapter>) -> Tensor<3> {
        let [_, tokens, _] = x_t.dims();
        let hidden_states = self.with_source(x_t);
        self.model
            .step(hidden_states, tokens, t, &self.context, adapter)
    }

    fn tracked<'s>(&'s self, x_t: Tensor<3>, t: Tensor<1>, trained: Trained<'s>) -> Tracked<'s> {
        let [_, tokens, _] = x_t.dims();
        let hidden_states = self.with_source(x_t);
        self.model
            .tracked_step(hidden_states, tokens, t, &self.context, trained)
    }

    fn with_source(&self, x_t: Tensor<3>) -> Tensor<3> {
        Tensor::cat(vec![x_t, self.image_latents.clone()], 1)
    }
}

fn update(case: &Case) -> anyhow::Result<Update> {
    Ok(Update {
        adamw: AdamWConfig {
            learning_rate: case.number("learning_rate")?,
            beta1: case.number("adam_beta1")?,
            beta2: case.number("adam_beta2")?,
            epsilon: case.number("adam_epsilon")?,
            weight_decay: case.number("weight_decay")?,
        },
        max_grad_norm: case.number("max_grad_norm")?,
        eta: case.number("eta")?,
        ema_decay: case.number("ema_decay")?,
    })
}

/// An adapter from a file of peft's names, and the names and shapes in the order of its flat form.
struct Adapter {
    adapter: LoraAdapter,
    factors: Vec<(String, [usize; 2])>,
}

impl Adapter {
    fn read(
        case: &Case,
        file: &str,
        model: &FluxTransformer,
        device: &Device,
    ) -> anyhow::Result<Self> {
        let weights = Weights::from_file(&case.path(file))?;
        let names: BTreeMap<String, String> = weights
            .names()
            .map(|name| (bare(name), name.to_owned()))
            .collect();
        let mut factors = Vec::new();
        let mut factor = |name: &str| {
            let tensor = weights.tensor::<2>(name, device)?;
            factors.push((name.to_owned(), tensor.dims()));
            anyhow::Ok(Param::from_tensor(tensor))
        };
        let mut pair = |projection: &Projection| {
            let Some(a) = names.get(&format!("{}.lora_A.weight", projection.name)) else {
                return Ok(None);
            };
            let b = names.get(&format!("{}.lora_B.weight", projection.name));
            let b = b.with_context(|| format!("{file} has {a} without its lora_B"))?;
            Ok(Some(LoraPair {
                a: factor(a)?,
                b: factor(b)?,
            }))
        };
        let pairs = model
            .projections()
            .iter()
            .map(&mut pair)
            .collect::<anyhow::Result<_>>()?;
        let scale = case.number("alpha")? / case.number("rank")?;
        Ok(Self {
            adapter: LoraAdapter::from_pairs(pairs, scale),
            factors,
        })
    }

    /// Adds every factor of a flat adapter as `prefix.NAME`.
    fn name(&self, mut outputs: Outputs, prefix: &str, flat: &[f32]) -> Outputs {
        let mut rest = flat;
        for (name, shape) in &self.factors {
            let (values, after) = rest.split_at(shape.iter().product());
            rest = after;
            outputs = outputs.data(
                &format!("{prefix}.{name}"),
                TensorData::new(values.to_vec(), *shape),
            );
        }
        outputs
    }
}

/// A factor's name without peft's wrapping.
fn bare(name: &str) -> String {
    let name = name.strip_prefix("base_model.model.").unwrap_or(name);
    name.replace(".default.", ".")
}
