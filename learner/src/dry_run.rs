//! One iteration on random samples: what a run will take of a learner, before it is started.

use std::path::Path;
use std::time::{Duration, Instant};

use burn::tensor::Device;
use retouch_models::device::{self, DeviceError};
use retouch_models::editor::{Editor, Layout, Parts};
use retouch_models::exchange;
use retouch_models::lora;
use retouch_models::noise;
use retouch_models::weights::LoadError;
use retouch_proto::RunConfig;
use retouch_proto::config::Reference;
use retouch_proto::task::TrainMetrics;
use retouch_proto::{GroupId, Iteration};
use serde::Serialize;

use crate::metrics::Evaluations;
use crate::plan;
use crate::shards::{self, BoxError, ShardReduce};
use crate::state::{LearnerState, StateError};
use crate::step::{self, GroupData, Observer, SampledBy, SealedGroup, SealedIteration, StepError};
use crate::workload::condition_shape;

/// How much of itself the old policy has of the new one: they differ, as after the first iterations.
const OLD_SHARE: f32 = 0.99;

/// What one rank's iteration took.
#[derive(Clone, Debug, Serialize)]
pub struct DryRun {
    /// The tensors that go in.
    pub shapes: Vec<NamedShape>,
    /// Ranks of the run; this was the first.
    pub ranks: usize,
    /// Groups whose samples this rank needs.
    pub groups: usize,
    /// (sample, timestep) pairs for which it asked each policy.
    pub evaluations: Evaluations,
    /// Values of the trained adapter.
    pub adapter_values: usize,
    /// Seconds to load the base model.
    pub load_s: f64,
    /// Seconds of the whole iteration.
    pub iteration_s: f64,
    /// Seconds of its stages: name and time, without those that need other processes.
    pub stages_s: Vec<(&'static str, f64)>,
}

/// A tensor, or several of one shape.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NamedShape {
    /// What it is.
    pub name: &'static str,
    /// Its dimensions.
    pub shape: Vec<usize>,
}

/// Why an iteration could not be walked through.
#[derive(Debug, thiserror::Error)]
pub enum DryRunError {
    /// The device is not there.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The base model can't be loaded.
    #[error("the base model cannot be loaded: {0}")]
    Load(#[from] LoadError),
    /// The state can't be read back.
    #[error(transparent)]
    State(#[from] StateError),
    /// The iteration itself.
    #[error(transparent)]
    Step(#[from] StepError),
}

/// Walks through the first rank's part of an iteration that keeps every group.
///
/// `observe` is told how far it is, and may stop it. Other ranks are not waited for, and nothing is written.
///
/// # Errors
///
/// See [`DryRunError`].
pub fn dry_run(run: &RunConfig, observe: &mut Observer<'_>) -> Result<DryRun, DryRunError> {
    let device = device::open(run.learner.device.first())?;
    let dtype = device::float_type(run.model.dtype);
    let begin = Instant::now();
    let folder = Path::new(&run.model.path);
    Layout::check_targets(folder, &run.lora.adapter)?;
    let editor = Editor::load_as(folder, &device, Parts::Transformer, dtype)?;
    let load = begin.elapsed();
    let walk = Walk {
        run,
        editor: &editor,
        device: &device,
    };
    walk.iteration(load, observe)
}

/// The settings of a run on a loaded model.
struct Walk<'a> {
    run: &'a RunConfig,
    editor: &'a Editor,
    device: &'a Device,
}

impl Walk<'_> {
    fn iteration(&self, load: Duration, observe: &mut Observer<'_>) -> Result<DryRun, DryRunError> {
        let ranks = self.run.learner.ranks as usize;
        let groups = self.groups(ranks);
        // As a learner has it: the blob of the state stays while the task is worked on.
        let blob = self.state().to_bytes();
        let begin = Instant::now();
        let state = LearnerState::from_bytes(&blob)?;
        // As a learner has it, a vector of its own.
        let reference = self.run.learner.reference == Reference::Init;
        let reference = reference.then(|| state.theta.clone());
        let iteration = SealedIteration {
            editor: self.editor,
            config: self.run,
            number: Iteration(1),
            reference: reference.as_deref(),
            groups: &groups,
        };
        let output = step::train_iteration(iteration, &state, &mut FirstOf { ranks }, observe)?;
        let publishing = Instant::now();
        let published = (
            output.state.to_bytes(),
            exchange::adapter_to_bytes(&output.state.old),
        );
        let publish_s = publishing.elapsed().as_secs_f64();
        let iteration_s = begin.elapsed().as_secs_f64();
        drop((published, blob));
        let metrics = TrainMetrics {
            publish_s,
            ..output.metrics.into()
        };
        Ok(DryRun {
            shapes: self.shapes(&groups),
            ranks,
            groups: groups.iter().filter(|group| group.data.is_some()).count(),
            evaluations: output.metrics.times.evaluations,
            adapter_values: state.theta.len(),
            load_s: load.as_secs_f64(),
            iteration_s,
            stages_s: walked(&metrics),
        })
    }

    fn state(&self) -> LearnerState {
        let projections = self.editor.projections();
        let theta = lora::init_flat(&self.run.lora.adapter, projections, self.run.seed);
        let mut state = LearnerState::initial(theta);
        state.old.iter_mut().for_each(|value| *value *= OLD_SHARE);
        state
    }

    /// The groups of an iteration, with the samples that the first rank's shards need.
    fn groups(&self, ranks: usize) -> Vec<SealedGroup> {
        let rollout = &self.run.rollout;
        let shards = self.run.learner.gradient_shards as usize;
        let sizes = vec![rollout.group_size as usize; rollout.groups_per_iteration as usize];
        let needed = plan::needed_groups(shards, shards::owned(shards, 0, ranks), &sizes);
        let mut groups: Vec<SealedGroup> = (0..rollout.groups_per_iteration)
            .map(|index| self.group(index))
            .collect();
        for position in needed {
            groups[position].data = Some(self.data(groups[position].group.index));
        }
        groups
    }

    fn group(&self, index: u32) -> SealedGroup {
        let samples = self.run.rollout.group_size as usize;
        let advantages = noise::normal_values(u64::from(index), samples);
        let iteration = Iteration(1);
        SealedGroup {
            group: GroupId { iteration, index },
            advantages: advantages.into_iter().map(f64::from).collect(),
            sampled_by: SampledBy::Old,
            data: None,
        }
    }

    fn data(&self, index: u32) -> GroupData {
        let shape = condition_shape(self.run);
        let [tokens, channels] = self.editor.latent_shape(shape.size);
        let samples = self.run.rollout.group_size as usize;
        let seed = u64::from(index) + 1;
        GroupData {
            condition: self.editor.random_condition(shape, seed),
            x0: noise::normal(seed, [samples, tokens, channels], self.device),
        }
    }

    fn shapes(&self, groups: &[SealedGroup]) -> Vec<NamedShape> {
        let condition = condition_shape(self.run);
        let prompt = self.editor.prompt_shape(condition);
        let [tokens, channels] = self.editor.latent_shape(condition.size);
        let samples = groups.first().map_or(0, |group| group.advantages.len());
        let pairs = self.run.learner.micro_batch_size as usize;
        let mut shapes = vec![
            shape("x0 of a group", [samples, tokens, channels]),
            shape("source latents", [condition.sources * tokens, channels]),
            shape("prompt", [prompt.tokens, prompt.width]),
        ];
        if let Some(width) = prompt.pooled {
            shapes.push(shape("pooled prompt", [width]));
        }
        shapes.push(shape("x_t of a micro batch", [pairs, tokens, channels]));
        let all = (1 + condition.sources) * tokens + prompt.tokens;
        shapes.push(shape("tokens of a micro batch", [pairs, all]));
        shapes
    }
}

fn shape<const D: usize>(name: &'static str, shape: [usize; D]) -> NamedShape {
    NamedShape {
        name,
        shape: shape.to_vec(),
    }
}

/// The stages that one process has by itself.
fn walked(metrics: &TrainMetrics) -> Vec<(&'static str, f64)> {
    let elsewhere = ["data wait", "all-reduce", "checkpoint"];
    let stages = metrics.stages().into_iter();
    stages
        .filter(|(name, _)| !elsewhere.contains(name))
        .collect()
}

/// The first of some ranks, without the others.
struct FirstOf {
    ranks: usize,
}

impl ShardReduce for FirstOf {
    fn rank(&self) -> usize {
        0
    }

    fn world(&self) -> usize {
        self.ranks
    }

    fn all_reduce(&mut self, shards: Vec<Vec<f32>>) -> Result<Vec<f32>, BoxError> {
        Ok(shards::tree_sum(shards))
    }
}
