//! Edits held-out pairs: by the base or by an adapter, always from a pair's own noise.

use std::{
    panic::resume_unwind,
    path::Path,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

use image::RgbImage;
use retouch_models::{
    device,
    editor::{
        Condition, ConditionShape, EditRequest, Editor, ImageSize, Parts, SampleOptions,
        batches_of_one_shape,
    },
    lora::{LoraAdapter, load_adapter},
    memory, noise,
    weights::LoadError,
};
use retouch_proto::{
    RunConfig,
    config::DeviceName,
    seed::{Purpose, derive},
};

use crate::{evaluator::EvaluationError, pairs::Pair};

/// An editor, and how a run file has it sample held-out pairs.
pub struct PairEditor {
    editor: Editor,
    options: SampleOptions,
    max_sequence_length: usize,
    seed: u64,
}

impl PairEditor {
    /// Loads the editor that a run file describes.
    ///
    /// # Errors
    /// If the device or the editor can't be used.
    pub fn load(config: &RunConfig, device: DeviceName) -> Result<Self, EvaluationError> {
        let device = device::open(device)?;
        let dtype = device::float_type(config.model.dtype);
        Ok(Self {
            editor: Editor::load_as(Path::new(&config.model.path), &device, Parts::All, dtype)?,
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

    /// The adapter in a PEFT folder.
    ///
    /// # Errors
    /// If it can't be read, or is not for this editor.
    pub fn adapter(&self, folder: &Path) -> Result<LoraAdapter, LoadError> {
        load_adapter(folder, self.editor.projections(), self.editor.device())
    }

    /// Edits every pair; pictures are in the order of `pairs`.
    ///
    /// # Errors
    /// If a pair can't be edited: the error of the first such pair.
    pub fn edit_all(
        &self,
        pairs: &[Pair],
        adapter: Option<&LoraAdapter>,
    ) -> Result<Vec<RgbImage>, EvaluationError> {
        self.in_batches(pairs, |batch| {
            self.edit(batch, &self.conditions(batch, pairs)?, adapter)
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

    /// Has `work` done for every pair, on all cores or in batches on a GPU; what it gives is in the order of `pairs`.
    pub(crate) fn in_batches<T: Send>(
        &self,
        pairs: &[Pair],
        work: impl Fn(&[usize]) -> Result<Vec<T>, EvaluationError> + Sync,
    ) -> Result<Vec<T>, EvaluationError> {
        let batches = self.batches(pairs);
        let next = AtomicUsize::new(0);
        // Batches take unequal times, so threads draw the next one instead of having a share of their own.
        let draw = || -> Vec<(usize, Result<Vec<T>, EvaluationError>)> {
            let draw = || next.fetch_add(1, Ordering::Relaxed);
            std::iter::from_fn(|| {
                let index = draw();
                Some((index, work(batches.get(index)?)))
            })
            .collect()
        };
        let mut done = match memory::is_host(self.editor.device()) {
            true => on_all_cores(draw),
            // There the GPU is what is parallel; another thread's work is a stream of its own, which would wait for that of the
            // thread that loaded the models.
            false => draw(),
        };
        done.sort_by_key(|(index, _)| *index);
        let mut of_pairs: Vec<Option<T>> = pairs.iter().map(|_| None).collect();
        for (index, done) in done {
            for (pair, done) in batches[index].iter().zip(done?) {
                of_pairs[*pair] = Some(done);
            }
        }
        let all = of_pairs.into_iter();
        Ok(all
            .map(|of| of.expect("every pair is in a batch"))
            .collect())
    }

    /// The pairs that are edited together, by index.
    fn batches(&self, pairs: &[Pair]) -> Vec<Vec<usize>> {
        let shape = |pair: &Pair| -> (ImageSize, Vec<ImageSize>) {
            let sources = pair.sources.images.iter().map(ImageSize::of);
            (pair.sources.size, sources.collect())
        };
        let shapes: Vec<_> = pairs.iter().map(shape).collect();
        batches_of_one_shape(&shapes, |(size, sources)| {
            match memory::is_host(self.editor.device()) {
                // Each core has pairs of its own.
                true => 1,
                false => self.editor.samples_at_once_of(ConditionShape {
                    size: *size,
                    sources: sources.len(),
                    max_sequence_length: self.max_sequence_length,
                }),
            }
        })
    }

    /// What the editor is given for some pairs of one shape.
    pub(crate) fn conditions(
        &self,
        batch: &[usize],
        pairs: &[Pair],
    ) -> Result<Vec<Condition>, EvaluationError> {
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
        Ok(conditions.collect::<Result<_, _>>()?)
    }

    /// The noise depends on the pair alone, so that what differs before and after is the adapter's doing.
    pub(crate) fn edit(
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
