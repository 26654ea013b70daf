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
        Condition, ConditionShape, EditError, EditRequest, Editor, ImageSize, Layout, Parts,
        SampleOptions,
    },
    lora::{LoraAdapter, load_adapter},
    memory, noise,
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

/// Before and after of some pairs, in their order.
type ScoredBatch = Result<Vec<[Scored; 2]>, EvaluationError>;

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
        let folder = Path::new(&config.model.path);
        // Before the editor, which may take minutes to load.
        let adapter = load_adapter(adapter, &Layout::read(folder)?.projections, &device)?;
        let editor = Editor::load_as(folder, &device, Parts::All, dtype)?;
        Ok(Self {
            adapter,
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

    /// Edits every pair before and after, on all cores or in batches on a GPU; outcomes are in the order of `pairs`.
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
        let batches = self.batches(&pairs);
        let next = AtomicUsize::new(0);
        // Batches take unequal times, so threads draw the next one instead of having a share of their own.
        let work = || -> Vec<(usize, ScoredBatch)> {
            let draw = || next.fetch_add(1, Ordering::Relaxed);
            std::iter::from_fn(|| {
                let index = draw();
                let batch = batches.get(index)?;
                let scored = self.before_and_after(batch, &pairs);
                batch.iter().for_each(|_| progress());
                Some((index, scored))
            })
            .collect()
        };
        let mut scored = match memory::is_host(self.editor.device()) {
            true => on_all_cores(work),
            // There the GPU is what is parallel; another thread's work is a stream of its own, which would wait for that of the
            // thread that loaded the models.
            false => work(),
        };
        scored.sort_by_key(|(index, _)| *index);
        let mut of_pairs: Vec<_> = pairs.iter().map(|_| None).collect();
        for (index, scored) in scored {
            for (pair, scored) in batches[index].iter().zip(scored?) {
                of_pairs[*pair] = Some(scored);
            }
        }
        let outcome = |(pair, scored): (Pair, Option<[Scored; 2]>)| {
            let [before, after] = scored.expect("every pair is in a batch");
            Outcome {
                pair,
                before,
                after,
            }
        };
        Ok(pairs.into_iter().zip(of_pairs).map(outcome).collect())
    }

    /// The pairs that are edited together, by index.
    fn batches(&self, pairs: &[Pair]) -> Vec<Vec<usize>> {
        let sizes: Vec<ImageSize> = pairs.iter().map(|pair| pair.sources.size).collect();
        batches(&sizes, |size| match memory::is_host(self.editor.device()) {
            // Each core has pairs of its own.
            true => 1,
            false => self.editor.samples_at_once_of(ConditionShape {
                size,
                sources: 1,
                max_sequence_length: self.max_sequence_length,
            }),
        })
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

    /// Edits and scores of some pairs of one size, in their order.
    fn before_and_after(&self, batch: &[usize], pairs: &[Pair]) -> ScoredBatch {
        let conditions = batch.iter().map(|&index| {
            let pair = &pairs[index];
            self.editor.encode_request(&EditRequest {
                prompt: &pair.prompt,
                negative_prompt: self.options.negative_prompt(),
                sources: &pair.sources.images,
                source_size: pair.sources.source_size(),
                size: pair.sources.size,
                max_sequence_length: self.max_sequence_length,
            })
        });
        let conditions: Vec<Condition> = conditions.collect::<Result<_, _>>()?;
        let before = self.edit(batch, &conditions, None)?;
        let after = self.edit(batch, &conditions, Some(&self.adapter))?;
        let edits = before.into_iter().zip(after).zip(batch);
        let scored =
            edits.map(|((before, after), &index)| self.score(&pairs[index], before, after));
        scored.collect()
    }

    fn score(
        &self,
        pair: &Pair,
        before: RgbImage,
        after: RgbImage,
    ) -> Result<[Scored; 2], EvaluationError> {
        // One group of both: a judge scores them in one prefill.
        let group = Group {
            prompt: pair.prompt.clone(),
            requirement: pair.requirement.clone(),
            sources: pair.sources.images.clone(),
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
        batch: &[usize],
        conditions: &[Condition],
        adapter: Option<&LoraAdapter>,
    ) -> Result<Vec<RgbImage>, EvaluationError> {
        let seed = |&index: &usize| {
            let (purpose, index) = (Purpose::EvaluationNoise, index as u32);
            derive(self.seed, purpose, 0, index, 0, 0)
        };
        let seeds: Vec<u64> = batch.iter().map(seed).collect();
        let shape = self.editor.latent_shape(conditions[0].size);
        let noise = noise::normal_batch(&seeds, shape, self.editor.device());
        let each: Vec<&Condition> = conditions.iter().collect();
        let options = &self.options;
        let x0 = self.editor.sample_each(&each, noise, options, adapter)?;
        Ok(self.editor.decode(x0, &conditions[0])?)
    }
}

/// What as many threads as there are cores get done.
fn on_all_cores<T: Send>(work: impl Fn() -> Vec<T> + Sync) -> Vec<T> {
    let threads = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(&work)).collect();
        let ended = threads.into_iter().map(|thread| thread.join());
        let ended = ended.map(|ended| ended.unwrap_or_else(|panic| resume_unwind(panic)));
        ended.flatten().collect()
    })
}

/// Indices of equal sizes, together as many as `max` says for the size; batches begin in the order of their first.
fn batches(sizes: &[ImageSize], max: impl Fn(ImageSize) -> usize) -> Vec<Vec<usize>> {
    let mut batches: Vec<Vec<usize>> = Vec::new();
    for (index, size) in sizes.iter().enumerate() {
        let max = max(*size);
        let open = batches
            .iter_mut()
            .find(|batch| sizes[batch[0]] == *size && batch.len() < max);
        match open {
            Some(batch) => batch.push(index),
            None => batches.push(vec![index]),
        }
    }
    batches
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_are_of_one_size_and_hold_every_pair_once() {
        let sizes = [8, 8, 16, 8, 16, 8, 8].map(ImageSize::square);
        let max = |size: ImageSize| if size.height == 8 { 3 } else { 1 };
        assert_eq!(
            batches(&sizes, max),
            [vec![0, 1, 3], vec![2], vec![4], vec![5, 6]]
        );
        let alone: Vec<Vec<usize>> = (0..7).map(|index| vec![index]).collect();
        assert_eq!(batches(&sizes, |_| 1), alone);
    }
}
