//! What rollout workers and learners compute with a base editor.

use burn::tensor::DType;

use super::effort::{Effort, EffortLine, Unit};
use super::memory::Workload;
use crate::editor::{Network, Outline};
use crate::lora::Checkpointing;
use crate::work::Work;

/// Predictions for a training pair: of the policy, the old policy and the base.
const PREDICTIONS: u64 = 3;
/// Of these, those with an adapter whatever the reference is.
const ADAPTED: u64 = 2;

/// An edited image, its group's condition being computed once.
pub(super) fn rollout(editor: &Outline, workload: &Workload) -> Effort {
    let group = workload.group_size.max(1) as u64;
    let evaluations = workload.num_inference_steps as u64 * workload.guidance.evaluations();
    let prompts = workload.guidance.evaluations();
    let (velocity, condition) = (
        sampled_velocity(editor, workload),
        editor.prompt * prompts + editor.encoding,
    );
    let encoders: u64 = editor
        .text_encoders
        .iter()
        .map(|network| bytes(network, workload.dtype))
        .sum();
    let vae = bytes(&editor.vae, DType::F32);
    let image = workload.size.height * workload.size.width;
    let at_once = workload.decoded_at_once() as u64;
    let velocities = EffortLine {
        what: "velocities".to_owned(),
        arithmetic: format!(
            "{evaluations} evaluations ({} steps) x {} FLOP of {} tokens",
            workload.num_inference_steps,
            velocity.flops(),
            editor.tokens.all()
        ),
        flops: evaluations * velocity.flops(),
        bytes: evaluations * bytes(&editor.transformer, workload.dtype) / group,
    };
    let condition = EffortLine {
        what: "the condition".to_owned(),
        arithmetic: format!("{} FLOP / {group} images", condition.flops()),
        flops: condition.flops() / group,
        bytes: (prompts * encoders + vae) / group,
    };
    let decoding = EffortLine {
        what: "decoding".to_owned(),
        arithmetic: format!("{image} pixels, {at_once} images at a time"),
        flops: editor.decoding.flops(),
        bytes: vae / at_once,
    };
    Effort::new(Unit::Image, vec![velocities, condition, decoding])
}

/// A f32 base has the adapter merged into its weights, a narrower one has it beside them.
fn sampled_velocity(editor: &Outline, workload: &Workload) -> Work {
    match workload.dtype {
        DType::F32 => editor.velocity,
        _ => editor.velocity + editor.adapter,
    }
}

/// A pair of a sample and a timestep: three predictions, and the way back through the policy's, whose
/// blocks are computed again if only their inputs were kept.
pub(super) fn learner(editor: &Outline, workload: &Workload) -> Effort {
    let batch = workload.micro_batch_size.max(1) as u64;
    let weights = bytes(&editor.transformer, workload.dtype);
    let forward = editor.velocity.flops() * PREDICTIONS;
    let again = match workload.checkpointing {
        Checkpointing::None => 0,
        Checkpointing::Block => 1,
    };
    let adapted = ADAPTED + workload.reference.adapters() + again;
    // Of a factor, the gradients are its own and its input's.
    let adapter = editor.adapter.flops() * (adapted + 2);
    let line = |what: &str, arithmetic: String, flops, reads| EffortLine {
        what: what.to_owned(),
        arithmetic,
        flops,
        bytes: reads * weights / batch,
    };
    let mut lines = vec![
        line(
            "predictions of policy, old policy and reference",
            format!(
                "{PREDICTIONS} x {} FLOP of {} tokens",
                editor.velocity.flops(),
                editor.tokens.all()
            ),
            forward,
            PREDICTIONS,
        ),
        line(
            "backward",
            "as much as one prediction, and a product more in attention".to_owned(),
            editor.velocity.backward_flops(),
            1,
        ),
        line(
            "the policy's blocks once more",
            format!("{again} x {} FLOP", editor.velocity.flops()),
            again * editor.velocity.flops(),
            again,
        ),
        line(
            "the adapter's factors",
            format!("{adapted} x forward, 2 x backward"),
            adapter,
            0,
        ),
    ];
    lines.retain(|line| line.flops > 0);
    Effort::new(Unit::TrainingPair, lines)
}

fn bytes(network: &Network, dtype: DType) -> u64 {
    network.table.parameters() * dtype.size() as u64
}
