//! What a run file has each role do at once, as plans of memory and time want to know it.

use retouch_models::{
    device,
    editor::{ConditionShape, ImageSize},
    inspect::{self, Guidance, Role, Workload},
};
use retouch_proto::{
    RunConfig,
    config::{DeviceName, ModelConfig, Reference, Sizing},
};

/// The workload of one worker of this role.
pub fn workload(run: &RunConfig, role: Role) -> Workload {
    let (dtype, devices) = match role {
        Role::RewardWorker => (run.reward.dtype, &run.reward.device),
        Role::RolloutWorker => (run.model.dtype, &run.model.device),
        Role::Learner => (run.model.dtype, &run.learner.device),
    };
    Workload {
        device: devices.first(),
        dtype: device::float_type(dtype),
        size: largest_size(&run.model),
        sources: sources_max(run),
        group_size: run.rollout.group_size as usize,
        max_sequence_length: run.model.max_sequence_length as usize,
        num_inference_steps: run.rollout.num_inference_steps as usize,
        guidance: match run.rollout.true_cfg_scale > 1.0 {
            true => Guidance::ClassifierFree,
            false => Guidance::None,
        },
        checkpointing: run.learner.activation_checkpointing,
        micro_batch_size: run.learner.micro_batch_size as usize,
        lanes: lanes(run),
        shards: (run.learner.gradient_shards / run.learner.ranks.max(1)) as usize,
        lora: run.lora.adapter.clone(),
        reference: match run.learner.reference {
            Reference::Init if run.learner.kl_beta != 0.0 => inspect::Reference::Adapter,
            Reference::Init | Reference::Base => inspect::Reference::Base,
        },
    }
}

/// The largest condition of a run.
pub fn condition_shape(run: &RunConfig) -> ConditionShape {
    ConditionShape {
        size: largest_size(&run.model),
        sources: sources_max(run),
        max_sequence_length: run.model.max_sequence_length as usize,
    }
}

/// The size with the most pixels of those that images are sized to.
fn largest_size(model: &ModelConfig) -> ImageSize {
    match model.sizing {
        // As many pixels in another aspect, if that differs.
        Sizing::Fixed | Sizing::Aspect => ImageSize {
            height: model.height as usize,
            width: model.width as usize,
        },
        Sizing::Preferred => ImageSize::largest_preferred(),
    }
}

/// What the rows do not say yet is one.
fn sources_max(run: &RunConfig) -> usize {
    run.dataset.sources_max.max(1) as usize
}

/// A learner on a CPU has a lane a thread.
fn lanes(run: &RunConfig) -> usize {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    match (
        run.learner.device.first(),
        run.cluster.threads_per_worker as usize,
    ) {
        (DeviceName::Cpu, 0) => cores,
        (DeviceName::Cpu, threads) => threads,
        _ => 1,
    }
}
