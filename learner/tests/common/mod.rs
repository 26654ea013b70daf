//! A small editor and groups for tests.
#![allow(dead_code, unreachable_pub, missing_docs)]

use std::ops::ControlFlow;
use std::path::PathBuf;

use burn::tensor::{DType, Device};
use retouch_learner::shards::{Local, ShardReduce};
use retouch_learner::state::LearnerState;
use retouch_learner::step::{
    GroupData, SampledBy, SealedGroup, SealedIteration, StepError, StepOutput, train_iteration,
};
use retouch_models::editor::{ConditionShape, Editor, ImageSize, Parts};
use retouch_models::lora::LoraAdapter;
use retouch_models::noise;
use retouch_proto::{GroupId, Iteration, RunConfig};

/// A pipeline of the golden cases.
pub fn pipeline() -> PathBuf {
    pipeline_of("kontext_pipeline__dpm2_truncated_prompt")
}

/// The pipeline of a golden case.
pub fn pipeline_of(case: &str) -> PathBuf {
    let cases = PathBuf::from(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../tools/parity/cases"
    ));
    cases.join(case).join("pipeline")
}

pub fn editor() -> Editor {
    editor_as(DType::F32)
}

pub fn editor_as(dtype: DType) -> Editor {
    Editor::load_as(&pipeline(), &Device::flex(), Parts::Transformer, dtype).unwrap()
}

/// The published settings with a small adapter.
pub fn config() -> RunConfig {
    let mut run = RunConfig {
        seed: 7,
        ..RunConfig::default()
    };
    run.lora.adapter.rank = 2;
    run.lora.adapter.alpha = 4.0;
    run.learner.micro_batch_size = 4;
    run.learner.learning_rate = 1e-2;
    run
}

/// A state whose three policies differ.
pub fn state(editor: &Editor, config: &RunConfig) -> LearnerState {
    let device = Device::flex();
    let theta = LoraAdapter::init(&config.lora.adapter, editor.projections(), 1, &device).to_flat();
    let mut state = LearnerState::initial(theta);
    let noise = |seed| noise::normal_values(seed, state.theta.len());
    let (old, ema) = (noise(2), noise(3));
    state
        .old
        .iter_mut()
        .zip(old)
        .for_each(|(p, z)| *p += 0.1 * z);
    state
        .ema
        .iter_mut()
        .zip(ema)
        .for_each(|(p, z)| *p += 0.1 * z);
    state
}

/// A group with random latents, condition and advantages.
pub fn group(editor: &Editor, index: u32, size: usize) -> SealedGroup {
    sized_group(editor, index, size, [2, 2])
}

/// A group whose images have the given numbers of tokens in height and width.
pub fn sized_group(
    editor: &Editor,
    index: u32,
    size: usize,
    [rows, columns]: [usize; 2],
) -> SealedGroup {
    let device = Device::flex();
    let unit = editor.latent_format().unit();
    let image = ImageSize {
        height: rows * unit,
        width: columns * unit,
    };
    let [tokens, channels] = editor.latent_shape(image);
    let seed = u64::from(index) * 10;
    let shape = ConditionShape {
        size: image,
        sources: 1,
        max_sequence_length: 5,
    };
    let condition = editor.random_condition(shape, seed + 1);
    SealedGroup {
        group: GroupId {
            iteration: Iteration(1),
            index,
        },
        advantages: noise::normal_values(seed + 4, size)
            .into_iter()
            .map(f64::from)
            .collect(),
        sampled_by: SampledBy::Old,
        data: Some(GroupData {
            condition,
            x0: noise::normal(seed + 5, [size, tokens, channels], &device),
        }),
    }
}

pub fn iteration<'a>(
    editor: &'a Editor,
    config: &'a RunConfig,
    groups: &'a [SealedGroup],
) -> SealedIteration<'a> {
    SealedIteration {
        editor,
        config,
        number: Iteration(1),
        reference: None,
        groups,
    }
}

/// One iteration on one rank.
pub fn step(
    editor: &Editor,
    config: &RunConfig,
    state: &LearnerState,
    groups: &[SealedGroup],
) -> Result<StepOutput, StepError> {
    step_on(editor, config, state, groups, &mut Local)
}

pub fn step_on(
    editor: &Editor,
    config: &RunConfig,
    state: &LearnerState,
    groups: &[SealedGroup],
    shards: &mut dyn ShardReduce,
) -> Result<StepOutput, StepError> {
    let iteration = iteration(editor, config, groups);
    train_iteration(iteration, state, shards, &mut |_| ControlFlow::Continue(()))
}
