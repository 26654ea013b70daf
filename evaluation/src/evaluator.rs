//! Edits pairs by the base and by an adapter, and scores both.

use std::{
    panic::resume_unwind,
    path::Path,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

use image::RgbImage;
use retouch_models::{
    device::{self, DeviceError},
    editor::{
        Condition, EditError, EditRequest, Editor, ImageSize, Parts, SampleOptions, SourceSize,
    },
    lora::{LoraAdapter, load_adapter},
    noise,
    weights::LoadError,
};
use retouch_proto::{
    RunConfig,
    seed::{Purpose, derive},
};
use retouch_reward_worker::scorer::{Group, ScoreError, Scorer, ScorerError};
use thiserror::Error;

use crate::{
    outcome::{Outcome, Scored},
    pairs::Pair,
};

/// An evaluation that can't be made.
#[derive(Debug, Error)]
pub enum EvaluationError {
    /// A device is not there.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The editor or the adapter can't be loaded.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// A judge can't be loaded.
    #[error(transparent)]
    Scorer(#[from] ScorerError),
    /// A pair can't be edited.
    #[error(transparent)]
    Edit(#[from] EditError),
    /// An edit has no score.
    #[error(transparent)]
    Score(#[from] ScoreError),
}

/// An editor with an adapter, and the judges of both.
pub struct Evaluator {
    editor: Editor,
    adapter: LoraAdapter,
    scorer: Scorer,
    options: SampleOptions,
    max_sequence_length: usize,
    seed: u64,
}

impl Evaluator {
    /// Loads what a run file describes, with the adapter in the PEFT folder `adapter`.
    ///
    /// # Errors
    /// If a device, a model or the adapter can't be used.
    pub fn load(config: &RunConfig, adapter: &Path) -> Result<Self, EvaluationError> {
        let device = device::open(config.model.device.first())?;
        let dtype = device::float_type(config.model.dtype);
        let editor = Editor::load_as(Path::new(&config.model.path), &device, Parts::All, dtype)?;
        Ok(Self {
            adapter: load_adapter(adapter, editor.projections(), &device)?,
            editor,
            scorer: Scorer::load(&config.reward, &device::open(config.reward.device.first())?)?,
            options: SampleOptions {
                num_inference_steps: config.evaluation.num_inference_steps as usize,
                solver: config.evaluation.solver,
                guidance_scale: config.evaluation.guidance_scale,
                true_cfg_scale: config.evaluation.true_cfg_scale,
            },
            max_sequence_length: config.model.max_sequence_length as usize,
            seed: config.seed,
        })
    }

    /// Edits every pair before and after, on all cores; outcomes are in the order of `pairs`.
    ///
    /// `progress` is called from any thread, once for each pair that is done.
    ///
    /// # Errors
    /// If a pair can't be edited or scored: the error of the first such pair.
    pub fn evaluate(
        &self,
        pairs: Vec<Pair>,
        progress: &(dyn Fn() + Sync),
    ) -> Result<Vec<Outcome>, EvaluationError> {
        let next = AtomicUsize::new(0);
        // Pairs take unequal times, so threads draw the next one instead of having a share of their own.
        let work = || -> Vec<(usize, Result<[Scored; 2], EvaluationError>)> {
            let draw = || next.fetch_add(1, Ordering::Relaxed);
            std::iter::from_fn(|| {
                let index = draw();
                let scored = self.before_and_after(index, pairs.get(index)?);
                progress();
                Some((index, scored))
            })
            .collect()
        };
        let mut scored = thread::scope(|scope| {
            let threads = thread::available_parallelism().map_or(1, usize::from);
            let threads: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
            let ended = threads.into_iter().map(|thread| thread.join());
            let ended = ended.map(|ended| ended.unwrap_or_else(|panic| resume_unwind(panic)));
            ended.flatten().collect::<Vec<_>>()
        });
        scored.sort_by_key(|(index, _)| *index);
        let scored = pairs.into_iter().zip(scored);
        scored
            .map(|(pair, (_, scored))| {
                let [before, after] = scored?;
                Ok(Outcome {
                    pair,
                    before,
                    after,
                })
            })
            .collect()
    }

    /// Solver, steps and guidance, in words.
    pub fn sampling(&self) -> String {
        let options = &self.options;
        let mut sampling = format!(
            "{} with {} steps, guidance {}",
            options.solver, options.num_inference_steps, options.guidance_scale
        );
        if options.true_cfg_scale > 1.0 {
            sampling += &format!(", true CFG {}", options.true_cfg_scale);
        }
        sampling
    }

    fn before_and_after(&self, index: usize, pair: &Pair) -> Result<[Scored; 2], EvaluationError> {
        let condition = self.editor.encode_request(&EditRequest {
            prompt: &pair.prompt,
            negative_prompt: self.options.negative_prompt(),
            sources: std::slice::from_ref(&pair.source),
            source_size: SourceSize::Result,
            size: ImageSize::of(&pair.source),
            max_sequence_length: self.max_sequence_length,
        })?;
        let before = self.edit(index, &condition, None)?;
        let after = self.edit(index, &condition, Some(&self.adapter))?;
        // One group of both: a judge scores them in one prefill.
        let group = Group {
            prompt: pair.prompt.clone(),
            requirement: pair.requirement.clone(),
            source: pair.source.clone(),
            edits: vec![before, after],
        };
        let scores = self.scorer.score(&group)?.scores;
        let mut scored = group.edits.into_iter().zip(scores);
        Ok([(); 2].map(|()| {
            let (image, score) = scored.next().expect("a score for each of two edits");
            Scored {
                oracle: pair.oracle.as_ref().map(|oracle| oracle(&image)),
                judge: score.reward,
                image,
            }
        }))
    }

    /// The noise depends on the pair alone, so that what differs before and after is the adapter's doing.
    fn edit(
        &self,
        index: usize,
        condition: &Condition,
        adapter: Option<&LoraAdapter>,
    ) -> Result<RgbImage, EvaluationError> {
        let [tokens, channels] = self.editor.latent_shape(condition.size);
        let seed = derive(self.seed, Purpose::EvaluationNoise, 0, index as u32, 0, 0);
        let noise = noise::normal(seed, [1, tokens, channels], self.editor.device());
        let x0 = self
            .editor
            .sample(condition, noise, &self.options, adapter)?;
        let mut images = self.editor.decode(x0, condition)?;
        Ok(images.pop().expect("an image for each latent"))
    }
}
