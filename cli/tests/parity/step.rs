//! One whole optimizer step of the learner.

use std::collections::BTreeMap;

use anyhow::{Context, ensure};
use burn::module::{Module, Param};
use burn::tensor::{DType, Device, Tensor, TensorData};
use retouch_learner::adamw::AdamWConfig;
use retouch_learner::metrics::StageTimes;
use retouch_learner::nft::{NftBatch, add_noise};
use retouch_learner::schedule::Update;
use retouch_learner::state::LearnerState;
use retouch_learner::step::{Policies, pair_gradient, update};
use retouch_models::editor::{
    Condition, Editor, Encoders, FluxKontext, FluxKontextEncoders, ImageSize, Prepared, Prompt,
};
use retouch_models::lora::{
    Checkpointing, LoraAdapter, LoraGradient, LoraPair, Projection, Trained,
};
use retouch_models::ops;
use retouch_models::scheduler::FlowMatchScheduler;
use retouch_models::weights::Weights;

use super::method::{levels, nft_config, valid};
use crate::case::Case;
use crate::compare::{Outputs, compare};

/// The step with what each kind of checkpointing keeps, which changes no bit of our own ops.
pub(crate) fn nft_step(case: &Case, device: &Device) -> anyhow::Result<Outputs> {
    let whole = step(case, device, Checkpointing::None)?;
    let by_block = step(case, device, Checkpointing::Block)?;
    if *device == Device::flex() && ops::path_name() == "fused" {
        ensure!(
            by_block == whole,
            "with activation checkpointing the step is another one"
        );
    } else {
        // Burn's ops add up the gradients of one graph in another order than those of many.
        compare(case, &whole).context("without activation checkpointing")?;
    }
    Ok(by_block)
}

/// Every pair that counts is a micro batch of its own: each has another condition and guidance scale.
fn step(case: &Case, device: &Device, checkpointing: Checkpointing) -> anyhow::Result<Outputs> {
    let editor = editor(case, device)?;
    let read = |file, device: &Device| Adapter::read(case, file, editor.projections(), device);
    let theta = read("lora_theta.safetensors", &device.clone().autodiff())?;
    let old = read("lora_old.safetensors", device)?;
    let pairs = valid(case)?;
    let conditions = Conditions::read(case, device)?;
    let conditions: Vec<Prepared> = pairs
        .iter()
        .map(|&pair| conditions.of(&editor, pair))
        .collect();
    let batches = Batches::read(case, device)?;

    let config = nft_config(case)?;
    let mut gradient = LoraGradient::zero(&theta.adapter);
    let mut loss = 0.0;
    for (&pair, condition) in pairs.iter().zip(&conditions) {
        let policies = Policies {
            editor: &editor,
            condition,
            theta: Trained {
                adapter: &theta.adapter,
                checkpointing,
            },
            old: Some(&old.adapter),
            reference: None,
        };
        let times = &mut StageTimes::default();
        let part = pair_gradient(policies, &batches.of(pair), &config, times);
        ensure!(part.is_finite, "the gradient of pair {pair} is not finite");
        loss += part.terms.policy_loss[0] + config.kl_beta as f32 * part.terms.kl[0];
        gradient.add(part.gradient);
    }
    let count = pairs.len() as f64;
    let mean = |sum: f32| (f64::from(sum) / count) as f32;
    let gradient: Vec<f32> = gradient.into_flat().into_iter().map(mean).collect();
    let mut state = LearnerState::initial(theta.adapter.to_flat());
    state.old = old.adapter.to_flat();
    update(&mut state, gradient.clone(), &update_of(case)?);
    let outputs = Outputs::default().list("out.loss", vec![mean(loss)]);
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

/// The case's transformer in an editor. A learner needs none of the encoders, so another case's are as good.
fn editor(case: &Case, device: &Device) -> anyhow::Result<Editor> {
    let other = crate::own_cases().join("kontext_pipeline__dpm2_truncated_prompt/pipeline");
    let encoders = FluxKontextEncoders::load(&other, device, DType::F32)?;
    let transformer = super::flux::load(case, device)?.no_grad();
    let base = FluxKontext::new(transformer, encoders);
    Ok(Editor::new(base, FlowMatchScheduler::default(), device))
}

/// The pairs' conditions, each [B, ...].
struct Conditions {
    tokens: Tensor<3>,
    pooled: Tensor<2>,
    image_latents: Tensor<3>,
    /// None where the transformer takes none.
    guidance: Option<Vec<f64>>,
    /// Tokens in height and width of the result and of its source.
    grids: [[usize; 2]; 2],
}

impl Conditions {
    fn read(case: &Case, device: &Device) -> anyhow::Result<Self> {
        let guidance = case.has_input("guidance").then(|| case.values("guidance"));
        Ok(Self {
            tokens: case.input("encoder_hidden_states", device)?,
            pooled: case.input("pooled_projections", device)?,
            image_latents: case.input("image_latents", device)?,
            guidance: guidance.transpose()?,
            grids: grids(&case.values("img_ids")?),
        })
    }

    fn of(&self, editor: &Editor, pair: usize) -> Prepared {
        let unit = editor.latent_format().unit();
        let [size, source_size] = self.grids.map(|[rows, columns]| ImageSize {
            height: rows * unit,
            width: columns * unit,
        });
        let condition = Condition {
            prompt: Prompt {
                tokens: row(&self.tokens, pair).squeeze_dim(0),
                pooled: Some(row(&self.pooled, pair).squeeze_dim(0)),
            },
            negative_prompt: None,
            image_latents: row(&self.image_latents, pair).squeeze_dim(0),
            size,
            source_sizes: vec![source_size],
        };
        let guidance = self.guidance.as_ref().map_or(1.0, |scales| scales[pair]);
        editor.prepare(&[&condition], guidance)
    }
}

/// Rows and columns of the images that ids (image, row, column) of tokens speak of.
fn grids(ids: &[f64]) -> [[usize; 2]; 2] {
    [0.0, 1.0].map(|image| {
        let mine = ids.chunks(3).filter(|id| id[0] == image);
        let last = mine.map(|id| [id[1], id[2]]).next_back();
        last.map_or([0, 0], |last| last.map(|place| place as usize + 1))
    })
}

/// The pairs of a case.
struct Batches {
    x0: Tensor<3>,
    noise: Tensor<3>,
    t: Vec<f32>,
    advantages: Vec<f64>,
}

impl Batches {
    fn read(case: &Case, device: &Device) -> anyhow::Result<Self> {
        Ok(Self {
            x0: case.input("x0", device)?,
            noise: case.input("noise", device)?,
            t: levels(case)?,
            advantages: case.values("advantages")?,
        })
    }

    fn of(&self, pair: usize) -> NftBatch {
        let (x0, t) = (row(&self.x0, pair), vec![self.t[pair]]);
        NftBatch {
            x_t: add_noise(x0.clone(), row(&self.noise, pair), &t),
            x0,
            t,
            advantages: vec![self.advantages[pair]],
        }
    }
}

fn row<const D: usize>(tensor: &Tensor<D>, row: usize) -> Tensor<D> {
    tensor.clone().narrow(0, row, 1)
}

fn update_of(case: &Case) -> anyhow::Result<Update> {
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
        projections: &[Projection],
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
        let pairs = projections
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
